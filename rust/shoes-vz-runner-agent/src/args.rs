//! Go's flag style: one dash does as well as two.

use std::ffi::OsString;

/// `-listen :8080` and `-listen=:8080` become `--listen …`; short flags (`-h`, `-V`) and values stay.
pub fn go_style(args: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    args.into_iter()
        .enumerate()
        .map(|(i, arg)| match arg.to_str() {
            Some(text) if i > 0 && is_go_flag(text) => format!("-{text}").into(),
            _ => arg,
        })
        .collect()
}

fn is_go_flag(text: &str) -> bool {
    let name = text.strip_prefix('-').unwrap_or_default();
    let name = name.split('=').next().unwrap_or_default();
    name.len() > 1 && name.starts_with(|c: char| c.is_ascii_lowercase()) && !text.starts_with("--")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn style(args: &[&str]) -> Vec<String> {
        go_style(args.iter().map(OsString::from)).into_iter().map(|a| a.into_string().unwrap()).collect()
    }

    #[test]
    fn one_dash_does_as_well_as_two() {
        assert_eq!(
            style(&["a", "-listen", ":8080", "-runner-id=x"]),
            ["a", "--listen", ":8080", "--runner-id=x"]
        );
        assert_eq!(
            style(&["a", "--listen", "-h", "-V", "-", "-1"]),
            ["a", "--listen", "-h", "-V", "-", "-1"]
        );
    }
}
