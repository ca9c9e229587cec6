//! Lists and ranges of numbers, as llama-bench takes them.

/// The longest prompt, generation or depth that can be asked for.
pub const MAX_TOKENS: usize = 1 << 20;
/// The most values one list may hold.
const MAX_VALUES: usize = 1024;

/// The values of a list flag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct List(Vec<usize>);

/// `1,2,4`, `1-4`, `1-7+2`, `1-8*2`, or several of these.
pub fn list(text: &str, min: usize, max: usize) -> std::result::Result<List, String> {
    let number = |text: &str| match text.parse::<usize>() {
        Ok(n) if (min..=max).contains(&n) => Ok(n),
        Ok(n) => Err(format!("{n} is not in {min}..={max}")),
        Err(_) => Err(format!("'{}' is no number in {min}..={max}", text.escape_debug())),
    };
    let mut values = Vec::new();
    for item in text.split(',') {
        let Some((first, rest)) = item.split_once('-') else {
            values.push(number(item)?);
            continue;
        };
        let (last, step) = match rest.find(['+', '*']) {
            Some(at) => (&rest[..at], &rest[at..]),
            None => (rest, "+1"),
        };
        let (first, last) = (number(first)?, number(last)?);
        let (times, by) = step.split_at(1);
        let by = by.parse::<usize>().ok().filter(|&by| by <= max).unwrap_or(0);
        let grows = if times == "*" { by > 1 && first > 0 } else { by > 0 };
        if !grows || last < first {
            return Err(format!("'{}' does not grow", item.escape_debug()));
        }
        let mut value = first;
        while value <= last && values.len() <= MAX_VALUES {
            values.push(value);
            value = if times == "*" { value.saturating_mul(by) } else { value + by };
        }
    }
    if values.len() > MAX_VALUES {
        return Err(format!("more than {MAX_VALUES} values"));
    }
    Ok(List(values))
}

/// `512,128`
pub fn pair(text: &str) -> std::result::Result<(usize, usize), String> {
    match list(text, 1, MAX_TOKENS)?.0[..] {
        [prompt, generation] => Ok((prompt, generation)),
        _ => Err("expected two numbers, as in 512,128".into()),
    }
}

/// All values of a flag that may be repeated.
pub fn values(lists: &[List]) -> impl Iterator<Item = usize> {
    lists.iter().flat_map(|list| list.0.iter().copied())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_and_ranges() {
        let cases: &[(&str, &[usize])] = &[
            ("128", &[128]),
            ("1,2,4", &[1, 2, 4]),
            ("1-4", &[1, 2, 3, 4]),
            ("1-7+3", &[1, 4, 7]),
            ("1-8*2,9", &[1, 2, 4, 8, 9]),
            ("0", &[0]),
        ];
        for (text, expected) in cases {
            assert_eq!(list(text, 0, 4096), Ok(List(expected.to_vec())), "{text}");
        }
        for text in [
            "", "1,", "x", "-1", "1-", "5000", "1-5000", "1-4+0", "1-4*1", "0-4*2", "1-4+x", "1--4",
        ] {
            assert!(list(text, 0, 4096).is_err(), "{text}");
        }
        assert!(list("0", 1, 8).unwrap_err().contains("1..=8"));
        assert!(list("0-1048576", 0, 1 << 20).unwrap_err().contains("1024 values"));
        assert_eq!(pair("512,128"), Ok((512, 128)));
        assert!(pair("512").is_err() && pair("1,2,3").is_err() && pair("0,1").is_err());
    }
}
