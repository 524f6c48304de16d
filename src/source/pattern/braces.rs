//! Braces in names, expanded as Python's `braceexpand` does, which webdataset uses.

/// The most names that a pattern may stand for.
pub(super) const NAMES_MAX: usize = 1 << 20;
/// The most bytes of all of them, and of a pattern.
const BYTES_MAX: usize = 256 << 20;
const PATTERN_BYTES_MAX: usize = 64 << 10;
/// The most digits of a padded number.
const WIDTH_MAX: usize = 32;
/// The most braces within braces.
const DEPTH_MAX: usize = 32;

/// All names that `pattern` stands for, in order; the leftmost braces vary slowest.
///
/// # Errors
/// What is wrong, without the pattern, which may hold a secret: when braces do not pair, or there are too many names.
pub fn expand(pattern: &str) -> Result<Vec<String>, String> {
    if pattern.len() > PATTERN_BYTES_MAX {
        return Err(format!("the pattern has more than {PATTERN_BYTES_MAX} bytes"));
    }
    expand_at(pattern, 0)
}

/// The refusal of a pattern of too many names.
pub(super) fn too_many() -> String {
    format!("the pattern stands for more than {NAMES_MAX} names, or {BYTES_MAX} bytes of them")
}

fn expand_at(pattern: &str, depth: usize) -> Result<Vec<String>, String> {
    if depth > DEPTH_MAX {
        return Err(format!("braces are nested more than {DEPTH_MAX} deep"));
    }
    let mut names = vec![String::new()];
    let mut rest = pattern;
    while let Some(open) = rest.find(['{', '}']) {
        let close = matching(&rest[open..]).ok_or_else(|| "it has a brace without its counterpart".to_owned())?;
        let (literal, inner) = (&rest[..open], &rest[open + 1..open + close]);
        names.iter_mut().for_each(|name| name.push_str(literal));
        let choices = choices(inner, depth)?;
        let count = choices.len().saturating_mul(names.len());
        let longest = |names: &[String]| names.iter().map(String::len).max().unwrap_or(0);
        if count > NAMES_MAX || count.saturating_mul(longest(&names) + longest(&choices) + rest.len()) > BYTES_MAX {
            return Err(too_many());
        }
        names = names.iter().flat_map(|name| choices.iter().map(move |choice| format!("{name}{choice}"))).collect();
        rest = &rest[open + close + 1..];
    }
    names.iter_mut().for_each(|name| name.push_str(rest));
    Ok(names)
}

/// Where the brace that `text` begins with is closed.
fn matching(text: &str) -> Option<usize> {
    let mut depth = 0_usize;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'{' => depth += 1,
            b'}' => depth = depth.checked_sub(1)?,
            _ => {}
        }
        if depth == 0 {
            return Some(at);
        }
    }
    None
}

/// What a pair of braces with `inner` between them stands for.
fn choices(inner: &str, depth: usize) -> Result<Vec<String>, String> {
    if let Some(range) = range(inner)? {
        return Ok(range);
    }
    let (mut parts, mut level, mut start) = (Vec::new(), 0_i32, 0);
    for (at, byte) in inner.bytes().enumerate() {
        match byte {
            b'{' => level += 1,
            b'}' => level -= 1,
            b',' if level == 0 => {
                parts.push(&inner[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&inner[start..]);
    let mut names = Vec::new();
    for part in &parts {
        names.extend(expand_at(part, depth + 1)?);
        if names.len() > NAMES_MAX {
            return Err(too_many());
        }
    }
    // Braces without a comma are braces.
    Ok(if parts.len() == 1 { names.iter().map(|name| format!("{{{name}}}")).collect() } else { names })
}

/// `a..b` or `a..b..step`, of numbers or of letters.
fn range(inner: &str) -> Result<Option<Vec<String>>, String> {
    let mut parts = inner.split("..");
    let (Some(first), Some(last), step, None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
        return Ok(None);
    };
    let Ok(step) = step.map_or(Ok(1), |step| step.strip_prefix('-').unwrap_or(step).parse::<u64>()) else {
        return Ok(None);
    };
    let step = step.max(1);
    let steps = |from: i64, to: i64| -> Result<Vec<i64>, String> {
        let count = from.abs_diff(to) / step;
        if count >= NAMES_MAX as u64 {
            return Err(too_many());
        }
        let sign = if from < to { 1 } else { -1 };
        Ok((0..=count).map(|nth| from + sign * (nth * step) as i64).collect())
    };
    let is_number = |text: &str| {
        let digits = text.strip_prefix('-').unwrap_or(text);
        !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
    };
    if is_number(first) && is_number(last) && first.len().max(last.len()) <= WIDTH_MAX {
        let (Ok(from), Ok(to)) = (first.parse(), last.parse()) else {
            return Ok(None);
        };
        let is_padded = |text: &&str| !["0", "-0"].contains(text) && (text.starts_with('0') || text.starts_with("-0"));
        let width = if [first, last].iter().any(is_padded) { first.len().max(last.len()) } else { 0 };
        return Ok(Some(steps(from, to)?.into_iter().map(|number| format!("{number:0width$}")).collect()));
    }
    // In the order of braceexpand's alphabet, which has the capitals first and nothing in between.
    let letter = |text: &str| match text.as_bytes() {
        [letter @ b'A'..=b'Z'] => Some(i64::from(letter - b'A')),
        [letter @ b'a'..=b'z'] => Some(i64::from(letter - b'a') + 26),
        _ => None,
    };
    let (Some(from), Some(to)) = (letter(first), letter(last)) else {
        return Ok(None);
    };
    let name = |place: i64| char::from(if place < 26 { b'A' + place as u8 } else { b'a' + (place - 26) as u8 });
    Ok(Some(steps(from, to)?.into_iter().map(|place| name(place).to_string()).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each line is what braceexpand 0.1.7 gives.
    #[test]
    fn braces_are_expanded_as_braceexpand_does() {
        for (pattern, names) in [
            ("plain", "plain"),
            ("", ""),
            ("a{b,c}d", "abd acd"),
            ("{1..3}", "1 2 3"),
            ("{3..1}", "3 2 1"),
            ("{09..11}", "09 10 11"),
            ("{0..10..5}", "0 5 10"),
            ("{-01..1}", "-01 000 001"),
            ("{-1..1}", "-1 0 1"),
            ("{5..1..-2}", "5 3 1"),
            ("{a..d..2}", "a c"),
            ("{c..a}", "c b a"),
            ("{Y..b}", "Y Z a b"),
            ("x{a,{1..2},}y", "xay x1y x2y xy"),
            ("{a,b}{1,2}", "a1 a2 b1 b2"),
            ("{abc}", "{abc}"),
            ("{}", "{}"),
            ("{a{1,2}}", "{a1} {a2}"),
            ("{1..x}", "{1..x}"),
            ("{1..2..3..4}", "{1..2..3..4}"),
            ("t-{000000..000002}.tar", "t-000000.tar t-000001.tar t-000002.tar"),
        ] {
            assert_eq!(expand(pattern).unwrap().join(" "), names, "{pattern}");
        }
    }

    #[test]
    fn braces_that_do_not_pair_and_endless_ranges_are_refused() {
        for pattern in ["{a", "a}", "{a,{b}", "}{", "{1..99999999999}", "{1..9999}{1..9999}", &"{a,".repeat(99_999)] {
            assert!(expand(pattern).is_err(), "{:.20}", pattern);
        }
        assert!(expand(&format!("{}b{}", "{a,".repeat(40), "}".repeat(40))).is_err());
    }

    #[test]
    fn what_would_take_much_memory_is_refused_or_taken_as_it_is() {
        let wide = format!("{{{}1..2}}", "0".repeat(70_000));
        assert!(expand(&wide).is_err());
        let padded = format!("{{{}1..2}}", "0".repeat(1_000));
        assert_eq!(expand(&padded).unwrap(), [padded]);
        assert!(expand(&format!("{{0..1048575}}{}", "x".repeat(10_000))).is_err());
        let secret = expand("x-{0..3.tar?sig=secret").unwrap_err();
        assert!(!secret.contains("secret"), "{secret}");
    }
}
