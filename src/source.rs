//! Where in a specification an error lies, as a compiler would show it.
//!
//! An [`Error`] says where it happened in words: `line 4, column 1` for what no parser takes, `site 2`, `intervention 3 (...)`,
//! `host` or `domain` for what the checks and the compiler refuse. From these words and the specification's text comes the
//! place in the file; nothing that reads or compiles a specification has to carry places around.

use std::ops::Range;

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};
use toml::de::{DeTable, DeValue};

use crate::error::Error;

/// Longer lines are not shown.
const LONGEST_LINE: usize = 400;

/// Places that are fields' names.
const FIELDS: [&str; 9] = ["host", "budget", "domain", "sae", "when", "expr", "write", "source", "arithmetic"];

/// A step into a specification: a table's field, or the k-th of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step<'a> {
    Field(&'a str),
    Item(usize),
}

/// The error with the lines of the specification that it is about; `None` where they cannot be told.
///
/// `path` names the specification, `text` is what it holds; it is TOML unless the path ends in `.json`.
pub fn shown(error: &Error, path: &str, text: &str, renderer: &Renderer) -> Option<String> {
    let json = path.to_ascii_lowercase().ends_with(".json");
    let span = whole_characters(text, span(error, text, json)?);
    let line = text[..span.start].rfind('\n').map_or(0, |n| n + 1);
    let end = text[span.start..].find('\n').map_or(text.len(), |n| span.start + n);
    if end - line > LONGEST_LINE {
        return None;
    }
    // One line is pointed at, the first.
    let span = span.start..span.end.clamp(span.start, end.max(span.start));
    let known = |place: &&str| *place != path && position(text, place).is_none();
    let mut title: Vec<&str> = error.places().filter(known).collect();
    let what = error.what();
    title.push(&what);
    let snippet = Snippet::source(text).path(path).annotation(AnnotationKind::Primary.span(span));
    let title = title.join(": ");
    let mut group: Group<'_> = Level::ERROR.primary_title(title).element(snippet);
    if let Some(advice) = error.advice() {
        group = group.element(Level::HELP.message(advice));
    }
    Some(renderer.render(&[group]))
}

/// The span, widened to whole characters: a parser's places may lie between (TOML's leave out a byte order mark).
fn whole_characters(text: &str, span: Range<usize>) -> Range<usize> {
    let start = (0..=span.start.min(text.len())).rev().find(|k| text.is_char_boundary(*k)).unwrap_or(0);
    let end = (span.end.max(start)..text.len()).find(|k| text.is_char_boundary(*k)).unwrap_or(text.len());
    start..end
}

/// The bytes of the text that an error is about.
fn span(error: &Error, text: &str, json: bool) -> Option<Range<usize>> {
    let places: Vec<&str> = error.places().collect();
    // The fault lies in an option of the command line.
    if places.iter().any(|p| p.starts_with("--")) {
        return None;
    }
    if let Some(at) = places.iter().rev().find_map(|p| position(text, p)) {
        let word =
            text[at..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').map(char::len_utf8).sum::<usize>();
        // A whole character, where it is no word.
        let first = text[at..].chars().next().map_or(0, char::len_utf8);
        return Some(at..at + word.max(first));
    }
    let mut steps: Vec<Step<'_>> = Vec::new();
    for place in &places {
        match numbered(place) {
            Some(("site", k)) => steps.extend([Step::Field("sites"), Step::Item(k)]),
            Some(("intervention", k)) => steps.extend([Step::Field("interventions"), Step::Item(k)]),
            _ if FIELDS.contains(place) => steps.push(Step::Field(place)),
            _ => {
                if let Some(name) = place.strip_prefix("vector ") {
                    steps.extend([Step::Field("vectors"), Step::Field(name)]);
                }
            }
        }
    }
    let in_expression = places.iter().any(|p| p.starts_with("expression "));
    let what = if in_expression { "expression".into() } else { error.what() };
    let find = |steps: &[Step<'_>]| if json { in_json(text, steps) } else { in_toml(text, steps) };
    // The field that the message speaks of, if the table has it: `band must be ...`, `range = [2, 1] is reversed`.
    let words = what.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|w| !w.is_empty());
    let words = if steps.is_empty() { words.take(1) } else { words.take(usize::MAX) };
    for word in words {
        let word = if word == "expression" { "expr" } else { word };
        let field = [&steps[..], &[Step::Field(word)]].concat();
        if let Some(span) = find(&field) {
            return Some(span);
        }
    }
    if steps.is_empty() { mentioned(text, &places, &what, &find) } else { find(&steps) }
}

/// What an error about an SAE names: a feature that it does not have, or its own path.
fn mentioned(
    text: &str,
    places: &[&str],
    what: &str,
    find: &dyn Fn(&[Step<'_>]) -> Option<Range<usize>>,
) -> Option<Range<usize>> {
    let feature = what.strip_prefix("the SAE has no feature ");
    let sites = (0..).map(|k| vec![Step::Field("sites"), Step::Item(k)]).take_while(|s| find(s).is_some());
    for site in std::iter::once(Vec::new()).chain(sites) {
        let within = |steps: &[Step<'_>]| find(&[&site[..], steps].concat());
        if let Some(feature) = feature {
            let entry =
                |k, field: &'static str| within(&[Step::Field("interventions"), Step::Item(k), Step::Field(field)]);
            let entries = (0..).take_while(|k| within(&[Step::Field("interventions"), Step::Item(*k)]).is_some());
            let of_entries = |fields: &[&'static str]| -> Vec<Range<usize>> {
                entries.clone().flat_map(|k| fields.iter().filter_map(|f| entry(k, f)).collect::<Vec<_>>()).collect()
            };
            let named = of_entries(&["feature", "gate", "write"]);
            if let Some(span) = named.into_iter().find(|span| text.get(span.clone()) == Some(feature)) {
                return Some(span);
            }
            // z_477, a_477
            let variable = format!("_{feature}");
            let reads = |span: &Range<usize>| {
                let expression = text.get(span.clone()).unwrap_or_default();
                let ends = |at: usize| !expression[at..].starts_with(|c: char| c.is_alphanumeric() || c == '_');
                expression.match_indices(&variable).any(|(at, v)| ends(at + v.len()))
            };
            if let Some(span) = of_entries(&["when", "expr"]).into_iter().find(reads) {
                return Some(span);
            }
        }
        let table = within(&[Step::Field("sae"), Step::Field("path")]);
        if let Some(span) = table.or_else(|| within(&[Step::Field("sae")])) {
            let path = text.get(span.clone()).unwrap_or_default().trim_matches(['"', '\'']);
            if feature.is_none() && path.len() > 1 && places.iter().any(|p| p.contains(path)) {
                return Some(span);
            }
        }
    }
    None
}

/// `intervention 3 (feature 7)`: the word, and the index from 0.
fn numbered(place: &str) -> Option<(&str, usize)> {
    let mut words = place.split(' ');
    let (word, number) = (words.next()?, words.next()?);
    Some((word, number.parse::<usize>().ok()?.checked_sub(1)?))
}

/// `line 4, column 1`: the byte.
fn position(text: &str, place: &str) -> Option<usize> {
    let (line, column) = place.strip_prefix("line ")?.split_once(", column ")?;
    let (line, column): (usize, usize) = (line.parse().ok()?, column.parse().ok()?);
    let start = match line.checked_sub(1)? {
        0 => 0,
        n => text.match_indices('\n').nth(n - 1)?.0 + 1,
    };
    let rest = text[start..].lines().next().unwrap_or_default();
    let offset = rest.char_indices().nth(column.saturating_sub(1)).map_or(rest.len(), |(k, _)| k);
    Some(start + offset)
}

fn in_toml(text: &str, steps: &[Step<'_>]) -> Option<Range<usize>> {
    let table = DeTable::parse(text).ok()?;
    let (first, rest) = steps.split_first()?;
    let Step::Field(name) = first else { return None };
    let mut value = table.get_ref().get(*name)?;
    for step in rest {
        value = match (step, value.get_ref()) {
            (Step::Field(name), DeValue::Table(table)) => table.get(*name)?,
            (Step::Item(k), DeValue::Array(array)) => array.get(*k)?,
            _ => return None,
        };
    }
    Some(value.span()).filter(|s| s.start < s.end && s.end <= text.len())
}

/// The value at the end of the steps in JSON text that may be damaged elsewhere.
fn in_json(text: &str, steps: &[Step<'_>]) -> Option<Range<usize>> {
    let mut at = space(text, 0);
    for step in steps {
        at = match (step, text.as_bytes().get(at)?) {
            (Step::Field(name), b'{') => member(text, at, name)?,
            (Step::Item(k), b'[') => item(text, at, *k)?,
            _ => return None,
        };
    }
    Some(at..value_end(text, at)?)
}

/// The first byte that is no white space.
fn space(text: &str, at: usize) -> usize {
    at + text[at..].len() - text[at..].trim_start().len()
}

/// Where the value of an object's field starts.
fn member(text: &str, object: usize, name: &str) -> Option<usize> {
    let mut at = space(text, object + 1);
    loop {
        let end = value_end(text, at)?;
        let key = text.get(at + 1..end.checked_sub(1)?)?;
        let colon = space(text, end);
        let value = text[colon..].starts_with(':').then(|| space(text, colon + 1))?;
        if key == name {
            return Some(value);
        }
        at = after_comma(text, value_end(text, value)?)?;
    }
}

/// Where the k-th value of a list starts.
fn item(text: &str, list: usize, k: usize) -> Option<usize> {
    let mut at = space(text, list + 1);
    for _ in 0..k {
        at = after_comma(text, value_end(text, at)?)?;
    }
    text[at..].chars().next().filter(|c| *c != ']').map(|_| at)
}

fn after_comma(text: &str, end: usize) -> Option<usize> {
    let comma = space(text, end);
    text[comma..].starts_with(',').then(|| space(text, comma + 1))
}

/// Where the value that starts at a byte ends.
fn value_end(text: &str, start: usize) -> Option<usize> {
    let bytes = text.as_bytes();
    let (mut depth, mut quoted, mut at) = (0usize, false, start);
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'\\' if quoted => at += 1,
            b'"' => {
                quoted = !quoted;
                if !quoted && depth == 0 {
                    return Some(at + 1);
                }
            }
            _ if quoted => {}
            b'{' | b'[' => depth += 1,
            b'}' | b']' if depth == 0 => return (at > start).then_some(at),
            b'}' | b']' => {
                depth -= 1;
                if depth == 0 {
                    return Some(at + 1);
                }
            }
            b',' | b':' if depth == 0 => return (at > start).then(|| start + text[start..at].trim_end().len()),
            _ => {}
        }
        at += 1;
    }
    (at > start && !quoted && depth == 0).then_some(text.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Spec;
    use proptest::prelude::*;

    fn toml(text: &str) -> String {
        let error = Spec::parse_all_toml(text).expect_err(text).at("a.toml");
        shown(&error, "a.toml", text, &Renderer::plain()).unwrap_or_else(|| panic!("{error}"))
    }

    fn json(text: &str) -> String {
        let error = Spec::parse_all_json(text).expect_err(text).at("a.json");
        shown(&error, "a.json", text, &Renderer::plain()).unwrap_or_else(|| panic!("{error}"))
    }

    #[test]
    fn a_misspelt_field_is_underlined() {
        let text = toml("sae = 's'\n\n[[interventions]]\nfeature = 1\nacton = 'ablate'\n");
        let wanted = "error: unknown field 'acton', expected one of";
        assert!(text.starts_with(wanted), "{text}");
        for line in ["--> a.toml:5:1", "5 | acton = 'ablate'", "^^^^^", "help: did you mean 'action'?"] {
            assert!(text.contains(line), "{text}");
        }
    }

    #[test]
    fn what_a_check_refuses_is_pointed_at() {
        let one = "sae = 's'\n[[interventions]]\nfeature = 1\naction = 'ablate'\n\n";
        for (text, place, line) in [
            ("[[interventions]]\nfeature = 7\naction = 'ablat'\n", "a.toml:8:10", "8 | action = 'ablat'"),
            ("[[interventions]]\nfeature = 7\naction = 'cap'\n", "a.toml:8:10", "8 | action = 'cap'"),
            ("[[interventions]]\nfeature = 7\naction = 'ablate'\nband = -1\n", "a.toml:9:8", "9 | band = -1"),
            ("[budget]\nneurons = 0\n", "a.toml:7:11", "7 | neurons = 0"),
            ("[domain]\nrange = [2, 1]\n", "a.toml:7:9", "7 | range = [2, 1]"),
            ("[vectors.v]\nfile = ''\n", "a.toml:7:8", "7 | file = ''"),
            ("[[interventions]]\nfeature = 7\naction = 'ablate'\nwhen = 'z_3 >'\n", "a.toml:9:8", "9 | when = 'z_3 >'"),
            ("[[interventions]]\nfeature = 7\naction = 'ablate'\ntop_k = 3\n", "a.toml:9:1", "9 | top_k = 3"),
        ] {
            let shown = toml(&format!("{one}{text}"));
            assert!(shown.contains(place) && shown.contains(line), "{shown}");
        }
    }

    #[test]
    fn json_has_places_too() {
        let text = "{\n  \"sae\": \"s, [\\\" }\",\n  \"interventions\": [\n    { \"feature\": 1, \"action\": \"ablate\" },\n    { \"feature\": 7, \"action\": \"ablat\" }\n  ]\n}\n";
        let shown = json(text);
        assert!(shown.contains("a.json:5:31") && shown.contains("intervention 2 (feature 7)"), "{shown}");
        let shown = json(&text.replace("\"ablat\"", "\"ablate\", \"band\": -2"));
        assert!(shown.contains("a.json:5:49"), "{shown}");
        assert!(json("{\"sae\": \"s\",\n \"budgt\": {}}").contains("a.json:2:"));
    }

    #[test]
    fn what_has_no_place_has_no_picture() {
        let error = Spec::parse_all_toml("sae = 's'").unwrap_err();
        assert!(shown(&error, "a.toml", "sae = 's'", &Renderer::plain()).is_none(), "{error}");
    }

    #[test]
    fn places_between_characters_are_widened() {
        // Found by fuzzing: a name that is not ASCII, and a byte order mark, which TOML's places leave out.
        for text in ["l\u{7ec}er = 3", "\u{feff}sae = 's'\n[[interventions]]\nfeature = 1\naction = 'é'\n", "\u{feff}é"]
        {
            for path in ["a.toml", "a.json"] {
                let parse = if path == "a.toml" { Spec::parse_all_toml } else { Spec::parse_all_json };
                let error = parse(text).expect_err(text);
                let _ = shown(&error, path, text, &Renderer::plain());
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn any_text_has_places_or_none(text in "[\\PC\n\"{}\\[\\],:]{0,60}", place in "line [0-9]{1,3}, column [0-9]{1,3}|site [0-9]|intervention [0-9]|host") {
            let error = Error::input("band").at(place);
            for path in ["a.toml", "a.json"] {
                let _ = shown(&error, path, &text, &Renderer::plain());
            }
        }
    }
}
