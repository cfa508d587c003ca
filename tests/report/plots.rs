//! Plots and heat maps: what is drawn where.

use super::sweep;
use lacuna::record::Record;
use lacuna::report::{HeatMap, Plot, Report};
use std::collections::BTreeSet;
use std::fs;

#[test]
fn bands_are_shaded_within_the_axes() {
    let curve = [(0.1, 20.0), (0.5, 40.0)];
    let plain = Plot::curves("p").series("wanda", curve);
    let band = plain.clone().band([(0.5, 30.0, 90.0), (0.1, 19.0, 21.0)]);
    assert!(!plain.svg().unwrap().contains("<polygon"), "nothing to shade");
    let svg = band.svg().unwrap();
    assert_eq!(svg.matches("<polygon").count(), 1);
    assert!(svg.contains("\n80\n") && !plain.svg().unwrap().contains("\n80\n"), "the axis reaches the band's end");
    let points = svg.split("<polygon").nth(1).unwrap().split("points=\"").nth(1).unwrap().split('"').next().unwrap();
    let places: Vec<Vec<i32>> =
        points.split_whitespace().map(|place| place.split(',').map(|at| at.parse().unwrap()).collect()).collect();
    assert_eq!(places.len(), 4);
    assert!(
        places[0][0] < places[1][0] && places[1][1] > places[2][1],
        "lower ends from left to right, then upper: {places:?}"
    );
}

/// `attribute="..."` of every element `tag` in an SVG of ours: one element per line.
fn attributes<'a>(svg: &'a str, tag: &str, attribute: &str) -> Vec<&'a str> {
    let (open, key) = (format!("<{tag} "), format!(" {attribute}=\""));
    let value =
        |line: &'a str| line.split_once(&key).and_then(|(_, rest)| rest.split_once('"')).map(|(value, _)| value);
    svg.lines().filter(|line| line.starts_with(&open)).filter_map(value).collect()
}

fn is_curve(line: &str) -> bool {
    line.starts_with("<polyline") && line.contains(r#"stroke-width="5""#)
}

/// Elements are closed in order, attributes are quoted, `&` begins an entity.
fn assert_well_formed(svg: &str) {
    let mut open = Vec::new();
    let mut rest = svg;
    while let Some((before, after)) = rest.split_once('<') {
        assert!(!before.contains('>'), "stray > in {before}");
        let (tag, next) = after.split_once('>').expect("a tag ends");
        assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name), "{name} closes what is open");
        } else if !tag.ends_with('/') {
            open.push(tag.split_whitespace().next().expect("a tag has a name"));
        }
        rest = next;
    }
    assert!(open.is_empty(), "{open:?} stay open");
    for (at, _) in svg.match_indices('&') {
        assert!(["&amp;", "&lt;", "&gt;", "&quot;", "&apos;"].iter().any(|entity| svg[at..].starts_with(entity)));
    }
}

#[test]
fn svg_shows_axes_legend_and_every_point() -> lacuna::Result<()> {
    let plot = Plot::perplexity_vs_sparsity(&sweep())?;
    let svg = plot.svg()?;
    assert_well_formed(&svg);
    for label in ["Perplexity (exp of nats per token)", "Sparsity (% of", "dense (25.40)", "wanda 2:4", "20%", "1k"] {
        assert!(svg.contains(label), "{label} is missing");
    }
    assert!(svg.starts_with(r#"<svg role="img" width="800" height="500" viewBox="0 0 1600 1000""#), "{}", &svg[..120]);
    assert!(attributes(&svg, "text", "font-family").iter().all(|family| family.starts_with("DejaVu Sans, ")));
    // Blue is the first series, vermillion the second; outlines of markers are thinner. The legend's line has two points, the curve three.
    for color in ["#0072B2", "#D55E00"] {
        let own: Vec<_> = svg.lines().filter(|l| is_curve(l) && l.contains(color)).collect();
        let points: Vec<_> =
            own.iter().map(|l| attributes(l, "polyline", "points")[0].split_whitespace().count()).collect();
        assert_eq!(points, [2, 3], "{color}");
    }
    Ok(())
}

#[test]
fn perplexity_grows_upwards_and_sparsity_to_the_right() -> lacuna::Result<()> {
    let svg = Plot::perplexity_vs_sparsity(&sweep())?.svg()?;
    let curve = svg.lines().filter(|l| is_curve(l) && l.contains("#0072B2")).nth(1).expect("a curve");
    let points: Vec<(i32, i32)> = attributes(curve, "polyline", "points")[0]
        .split_whitespace()
        .map(|p| p.split_once(',').map(|(x, y)| (x.parse().unwrap(), y.parse().unwrap())).unwrap())
        .collect();
    assert!(points.windows(2).all(|w| w[0].0 < w[1].0 && w[0].1 > w[1].1), "{points:?}");
    // 10% to 50% is half as far as 10% to 90%; nats are linear on a log axis.
    let across = f64::from(points[1].0 - points[0].0) / f64::from(points[2].0 - points[0].0);
    let up = f64::from(points[1].1 - points[0].1) / f64::from(points[2].1 - points[0].1);
    assert!((across - 0.5).abs() < 0.005 && (up - (3.61 - 3.2401) / (8.05 - 3.2401)).abs() < 0.005, "{across} {up}");
    Ok(())
}

#[test]
fn png_has_the_size_and_more_than_paper() -> lacuna::Result<()> {
    let png = Plot::perplexity_vs_sparsity(&sweep())?.size(640, 400).png()?;
    let mut reader = png::Decoder::new(png.as_slice()).read_info().unwrap();
    let mut pixels = vec![0; reader.output_buffer_size()];
    let info = reader.next_frame(&mut pixels).unwrap();
    assert_eq!((info.width, info.height, info.color_type), (1280, 800, png::ColorType::Rgb));
    let colors: BTreeSet<&[u8]> = pixels.chunks(3).collect();
    for color in [[255, 255, 255], [0, 114, 178], [213, 94, 0]] {
        assert!(colors.contains(color.as_slice()), "{color:?} is missing");
    }
    assert!(colors.len() > 200, "{} colours: nothing is smoothed", colors.len());
    let ink = pixels.chunks(3).filter(|p| p.iter().all(|c| *c < 128)).count();
    assert!(ink > 5000, "{ink} dark pixels are no text");
    Ok(())
}

#[test]
fn rendering_twice_gives_the_same_bytes() -> lacuna::Result<()> {
    let plot = Plot::perplexity_vs_sparsity(&sweep())?;
    let elsewhere = plot.clone();
    let other = std::thread::spawn(move || (elsewhere.svg(), elsewhere.png())).join().expect("it draws");
    assert!(plot.svg()? == other.0? && plot.png()? == other.1?);
    Ok(())
}

#[test]
fn a_log_axis_drops_what_is_not_positive_and_says_so() -> lacuna::Result<()> {
    let points = [(0.1, 20.0), (0.5, 0.0), (0.7, -1.0), (0.8, f64::NAN), (0.9, f64::INFINITY), (0.95, 90.0)];
    let plot = Plot::curves("Dropped").log_y().series("random", points).baseline("dense", f64::NAN);
    assert_eq!(plot.caption(), "Not shown (not finite or not positive): random: 4 of 6 points; dense: NaN.");
    let svg = plot.svg()?;
    assert!(svg.contains("random: 4 of 6 points") && !svg.contains("dense ("));
    assert_eq!(
        Plot::curves("Linear").series("random", points).caption(),
        "Not shown (not finite): random: 2 of 6 points."
    );
    Ok(())
}

#[test]
fn plots_without_data_are_errors() {
    let message = |plot: Plot| plot.svg().unwrap_err().to_string();
    assert_eq!(message(Plot::curves("A")), "drawing a plot: \"A\" has no series; add one");
    assert_eq!(
        message(Plot::curves("B").series("s", Vec::<(f64, f64)>::new())),
        "drawing a plot: series \"s\" of \"B\" has no points"
    );
    assert!(message(Plot::curves("C").series("s", [(0.0, f64::NAN)])).contains("no point of \"C\" can be shown"));
    assert!(message(Plot::curves("D").size(1, 1).series("s", [(0.0, 1.0)])).contains("1 x 1 pixels"));
    assert!(message(Plot::bars("E", ["a"]).values("s", [1.0, 2.0])).contains("2 values for 1 categories"));
    assert!(message(Plot::bars("F", ["a"]).values("s", [1.0]).log_y()).contains("add a baseline"));
    let unevaluated = Record { evaluation: None, ..sweep().remove(1) };
    assert!(Plot::perplexity_vs_sparsity(&[unevaluated]).unwrap_err().to_string().contains("no record is both"));
}

#[test]
fn bars_are_as_long_as_their_values() -> lacuna::Result<()> {
    let plot = Plot::bars("Patterns", ["2:4", "4:8"]).y("Sparsity (%)").percent_y().values("wanda", [0.25, 0.5]);
    let svg = plot.svg()?;
    assert_well_formed(&svg);
    let bars: Vec<f64> = svg
        .lines()
        .filter(|l| l.starts_with("<rect") && l.contains("#0072B2"))
        .map(|l| attributes(l, "rect", "height")[0].parse().unwrap())
        .collect();
    // The first is the legend's square.
    assert_eq!(bars.len(), 3);
    assert!((bars[2] / bars[1] - 2.0).abs() < 0.01, "{bars:?}");
    assert!(svg.contains("25.0%") && svg.contains("4:8"));
    Ok(())
}

#[test]
fn plot_bundle_has_text_svg_and_png() -> lacuna::Result<()> {
    let bundle = Plot::perplexity_vs_sparsity(&sweep())?.bundle()?;
    assert_eq!(bundle.iter().map(|(mime, _)| *mime).collect::<Vec<_>>(), ["text/plain", "image/svg+xml", "image/png"]);
    assert!(bundle[0].1.starts_with("Perplexity against sparsity: wanda (3 points), magnitude (3 points), "));
    assert!(bundle[2].1.starts_with("iVBORw0KGgo"));
    Ok(())
}

#[test]
fn both_axes_may_be_logarithmic_and_in_percent() -> lacuna::Result<()> {
    let points = [(0.001, 1.0), (0.01, 10.0), (0.0, 3.0), (0.1, 100.0)];
    let plot = Plot::curves("Two").percent_x().log_x().log_y().series("all", points).baseline("dense", 10.0);
    assert_eq!(plot.caption(), "Not shown (not finite or not positive): all: 1 of 4 points.");
    let svg = plot.svg()?;
    assert!(["0.1%", "1%", "10%", "100"].iter().all(|label| svg.contains(label)));
    let curve = svg.lines().filter(|line| is_curve(line)).nth(1).expect("a curve behind the legend's");
    let points: Vec<(i32, i32)> = attributes(curve, "polyline", "points")[0]
        .split_whitespace()
        .map(|p| p.split_once(',').map(|(x, y)| (x.parse().unwrap(), y.parse().unwrap())).unwrap())
        .collect();
    let [(x0, y0), (x1, y1), (x2, y2)] = points[..] else { panic!("{points:?}") };
    assert!((x0 + x2 - 2 * x1).abs() < 3 && (y0 + y2 - 2 * y1).abs() < 3, "a straight line: {points:?}");
    // The dashes cross the curve where it meets the baseline.
    let dashes = svg.lines().filter(|line| line.starts_with("<polyline") && line.contains("#464646"));
    let heights: BTreeSet<_> =
        dashes.map(|l| attributes(l, "polyline", "points")[0].split([',', ' ']).nth(1).unwrap()).collect();
    assert!(heights.contains(y1.to_string().as_str()), "{heights:?} {y1}");
    Ok(())
}

#[test]
fn many_layers_share_an_ordered_scale_and_do_not_squeeze_the_chart() -> lacuna::Result<()> {
    let layers = |n: usize| {
        let points = |layer: usize| (0..16).map(move |i| (f64::from(i), (layer * i as usize) as f64));
        (0..n).fold(Plot::curves("Layers").y("Saliency").ordered(), |plot, layer| {
            plot.points(format!("layer {layer}"), points(layer))
        })
    };
    let (few, many) = (layers(4).svg()?, layers(36).svg()?);
    assert!(few.contains(r#"height="500""#) && many.contains(r#"height="566""#), "three more rows of legend");
    assert!(few.contains("#440154") && many.contains("#440154"));
    // A marker and a place in the legend for each; small circles, for there are many.
    assert_eq!(many.lines().filter(|line| line.starts_with("<circle") && line.contains(r#"r="8""#)).count(), 36 * 17);
    assert!(many.len() < 150_000, "{} bytes", many.len());
    Ok(())
}

fn heat_map(rows: usize, columns: usize) -> HeatMap {
    let value = move |row: usize, column: usize| 0.01 + ((row * 37 + column * 91) % 101) as f64 / 100.0;
    HeatMap::new("Where <tokens> go", (0..rows).map(move |row| (0..columns).map(move |column| value(row, column))))
        .rows("Layer")
        .columns("Expert")
        .unit("Share of tokens (%)")
        .percent()
}

#[test]
fn a_heat_map_shows_values_marks_axes_and_the_bar() -> lacuna::Result<()> {
    let map = heat_map(4, 8).mark("dropped", [(0, 0), (3, 7)]).mark("protected", [(1, 1)]);
    let svg = map.svg()?;
    assert_well_formed(&svg);
    for label in ["Where &lt;tokens&gt; go", "Layer", "Expert", "Share of tokens (%)", "dropped", "protected", "40%"] {
        assert!(svg.contains(label), "{label} is missing");
    }
    // Every cell has its value, and both ends of the scale are used.
    assert_eq!(svg.lines().filter(|line| line.ends_with(".0%")).count(), 32);
    let png = map.png()?;
    let mut reader = png::Decoder::new(png.as_slice()).read_info().unwrap();
    let mut pixels = vec![0; reader.output_buffer_size()];
    let info = reader.next_frame(&mut pixels).unwrap();
    assert_eq!((info.width, info.height), (1600, 644));
    let colors: BTreeSet<&[u8]> = pixels.chunks(3).collect();
    assert!(colors.len() > 200, "{} colours", colors.len());
    assert_eq!(
        map.summary(),
        "Where <tokens> go: 4 × 8 cells, Share of tokens (%) from 1.0% to 99.0%, 2 cells dropped, 1 cell protected"
    );
    Ok(())
}

#[test]
fn a_large_heat_map_stays_small_and_its_ticks_apart() -> lacuna::Result<()> {
    let map = heat_map(36, 128).mark("dropped", (0..36).flat_map(|row| (0..64).map(move |column| (row, column * 2))));
    let svg = map.svg()?;
    assert_well_formed(&svg);
    assert!(svg.len() < 300_000, "{} bytes", svg.len());
    let squares: usize =
        svg.lines().filter(|line| line.starts_with("<path fill=\"#")).map(|l| l.matches('M').count()).sum();
    let single = svg.lines().filter(|line| line.starts_with("<rect")).count();
    assert!(squares + single >= 36 * 128 + 128, "cells and bar: {squares} + {single}");
    // Labels of one axis stand on one line; those of the columns must not touch.
    let place = |name: &str, line: &str| attributes(line, "text", name)[0].parse::<i32>().unwrap();
    let lines: Vec<&str> = svg.lines().collect();
    let labelled = lines.windows(2).filter(|pair| pair[0].starts_with("<text") && pair[1].parse::<u32>().is_ok());
    let columns: Vec<i32> = labelled.filter(|p| p[0].contains("middle")).map(|pair| place("x", pair[0])).collect();
    assert!(columns.len() > 10 && columns.windows(2).all(|pair| pair[1] - pair[0] > 70), "{columns:?}");
    assert!(map.svg()? == svg && map.png()? == map.png()?);
    Ok(())
}

#[test]
fn a_cell_without_a_value_is_grey_and_names_stand_for_numbers() -> lacuna::Result<()> {
    let map = HeatMap::new("Shards", [[Some(1.0), None], [None, Some(1e6)]])
        .row_names(["first", "last"])
        .column_names(["a & b", "c"])
        .log();
    let svg = map.svg()?;
    assert_well_formed(&svg);
    assert!(svg.contains("#F0F0F0") && svg.contains("last") && svg.contains("a &amp; b") && svg.contains("1,000,000"));
    // One value everywhere is no error.
    HeatMap::new("Even", [[0.5; 3]]).percent().svg()?;
    Ok(())
}

#[test]
fn heat_maps_that_cannot_be_drawn_are_errors() {
    let message = |map: HeatMap| map.svg().unwrap_err().to_string();
    let none: [[f64; 0]; 0] = [];
    assert!(message(HeatMap::new("A", none)).ends_with("\"A\" has no cells; give it at least one row and one column"));
    assert!(message(HeatMap::new("A", [[0.0; 0]])).contains("no cells"));
    assert!(
        message(HeatMap::new("B", [vec![1.0, 2.0], vec![3.0]])).contains("row 1 of \"B\" has 1 cells, row 0 has 2")
    );
    let nan = message(HeatMap::new("C", [[1.0, f64::NAN]]));
    assert!(nan.contains("row 0, column 1 of \"C\" is NaN") && nan.contains("None for a blank cell"), "{nan}");
    assert!(message(HeatMap::new("D", [[1.0, 0.0]]).log()).contains("must be positive and finite"));
    assert!(message(HeatMap::new("E", [[None::<f64>]])).contains("no cell of \"E\" has a value"));
    assert!(message(heat_map(2, 2).row_names(["one"])).contains("1 row names for 2 rows"));
    assert!(message(heat_map(2, 2).mark("m", [(2, 0)])).contains("row 2, column 0; there are 2 rows and 2 columns"));
    let marks = (0..4).fold(heat_map(2, 2), |map, i| map.mark(i.to_string(), [(0, 0)]));
    assert!(message(marks).contains("4 kinds of marks; there are signs for 3"));
    assert!(message(heat_map(2, 2).size(100, 100)).contains("100 x 100 pixels"));
    assert!(message(heat_map(2, 2).row_names(["a".repeat(200), "b".into()])).contains("no room for its cells"));
}

#[test]
fn a_report_holds_heat_maps_like_plots() -> lacuna::Result<()> {
    let dir = tempfile::tempdir().unwrap();
    let files = Report::new("Experts").plot("routing", heat_map(4, 8)).write(dir.path(), "03")?;
    assert!(files.iter().any(|path| path.ends_with("03_routing.png")));
    let markdown = fs::read_to_string(&files[0]).unwrap();
    assert!(markdown.contains("](03_routing.svg)") && markdown.contains("4 × 8 cells"), "{markdown}");
    let bundle = heat_map(4, 8).bundle()?;
    assert_eq!(bundle.iter().map(|(mime, _)| *mime).collect::<Vec<_>>(), ["text/plain", "image/svg+xml", "image/png"]);
    Ok(())
}
