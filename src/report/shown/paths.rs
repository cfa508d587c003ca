//! Shapes of an SVG document merged into paths.

/// Makes one path of successive shapes that look alike, which saves most of a map's bytes.
pub(super) fn merge_shapes(svg: &str) -> String {
    let lines: Vec<_> = svg.lines().map(|line| (line, rectangle(line).or_else(|| polyline(line)))).collect();
    let mut out = String::with_capacity(svg.len());
    for run in lines.chunk_by(|a, b| a.1.as_ref().zip(b.1.as_ref()).is_some_and(|(a, b)| a.0 == b.0)) {
        match run {
            [(_, Some((style, _))), _, ..] => {
                let path: String = run.iter().flat_map(|(_, shape)| shape).map(|(_, path)| path.as_str()).collect();
                out += &format!("<path {style} d=\"{path}\"/>\n");
            }
            _ => run.iter().for_each(|(line, _)| out += &format!("{line}\n")),
        }
    }
    out
}

/// Style and path of a filled opaque rectangle as plotters writes it.
fn rectangle(line: &str) -> Option<(String, String)> {
    let mut rest = line.strip_prefix("<rect ")?;
    let [x, y, w, h] = [
        attribute(&mut rest, "x")?,
        attribute(&mut rest, "y")?,
        attribute(&mut rest, "width")?,
        attribute(&mut rest, "height")?,
    ];
    let (opacity, fill, stroke) =
        (attribute(&mut rest, "opacity")?, attribute(&mut rest, "fill")?, attribute(&mut rest, "stroke")?);
    // Without blending at the edges, neighbours of one colour show no seam.
    let style = format!("fill=\"{fill}\" shape-rendering=\"crispEdges\"");
    (opacity == "1" && fill != "none" && stroke == "none").then(|| (style, format!("M{x} {y}h{w}v{h}h-{w}z")))
}

/// Style and path of an opaque line as plotters writes it.
fn polyline(line: &str) -> Option<(String, String)> {
    let mut rest = line.strip_prefix("<polyline ")?;
    let (fill, opacity) = (attribute(&mut rest, "fill")?, attribute(&mut rest, "opacity")?);
    let (stroke, width) = (attribute(&mut rest, "stroke")?, attribute(&mut rest, "stroke-width")?);
    let points = attribute(&mut rest, "points")?.trim_end().replace(' ', "L").replace(',', " ");
    let style = format!("fill=\"none\" stroke=\"{stroke}\" stroke-width=\"{width}\"");
    (fill == "none" && opacity == "1").then(|| (style, format!("M{points}")))
}

/// The value of the attribute `name`, with which `rest` must begin; `rest` goes on behind it.
fn attribute<'a>(rest: &mut &'a str, name: &str) -> Option<&'a str> {
    let (value, after) = rest.strip_prefix(name)?.strip_prefix("=\"")?.split_once('"')?;
    *rest = after.trim_start();
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn successive_shapes_that_look_alike_become_a_path() {
        let rect = |x: i32, fill: &str| {
            format!(r##"<rect x="{x}" y="2" width="3" height="4" opacity="1" fill="{fill}" stroke="none"/>"##)
        };
        let line = |points: &str| {
            format!(r##"<polyline fill="none" opacity="1" stroke="#FFF" stroke-width="2" points="{points}"/>"##)
        };
        let text = r#"<text x="1">a</text>"#.to_owned();
        let svg = [rect(0, "#000"), rect(3, "#000"), rect(6, "#111"), text.clone(), rect(9, "#111")];
        let lines = [line("1,2 3,4 "), line("5,6 7,8 "), line("1,1 2,2 ").replace("\"2\"", "\"4\"")];
        let expected = [
            r##"<path fill="#000" shape-rendering="crispEdges" d="M0 2h3v4h-3zM3 2h3v4h-3z"/>"##,
            &svg[2],
            &text,
            &svg[4],
            r##"<path fill="none" stroke="#FFF" stroke-width="2" d="M1 2L3 4M5 6L7 8"/>"##,
            &lines[2],
            "",
        ];
        assert_eq!(merge_shapes(&[&svg[..], &lines].concat().join("\n")), expected.join("\n"));
    }
}
