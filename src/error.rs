//! The crate's one error type: opaque, with a few predicates that say who is at fault.

use std::fmt;

use rayon::prelude::*;

/// What went wrong, where, and what would work instead.
///
/// The text is for people; programs use the predicates ([`Error::is_input`] and its siblings).
#[derive(Debug)]
pub struct Error(Box<Inner>);

#[derive(Debug)]
struct Inner {
    kind: Kind,
    what: String,
    context: Vec<String>,
    help: Option<String>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Input,
    Unsupported,
    Disagreement,
    Io,
}

/// Shorthand used throughout the crate.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    fn new(kind: Kind, what: impl Into<String>) -> Self {
        Error(Box::new(Inner { kind, what: what.into(), context: Vec::new(), help: None, source: None }))
    }

    /// What was handed in is malformed, out of its domain, or impossible by its own terms.
    pub fn input(what: impl Into<String>) -> Self {
        Self::new(Kind::Input, what)
    }

    /// What was asked for is meaningful, but no construction here provides it.
    pub fn unsupported(what: impl Into<String>) -> Self {
        Self::new(Kind::Unsupported, what)
    }

    /// A certificate and the weights it speaks of do not agree.
    pub fn disagreement(what: impl Into<String>) -> Self {
        Self::new(Kind::Disagreement, what)
    }

    /// A file could not be read or written.
    pub fn io(what: impl Into<String>, source: std::io::Error) -> Self {
        let mut e = Self::new(Kind::Io, what);
        e.0.source = Some(Box::new(source));
        e
    }

    /// Adds where it happened, outermost last.
    #[must_use]
    pub fn at(mut self, place: impl Into<String>) -> Self {
        self.0.context.push(place.into());
        self
    }

    /// Adds what would work.
    #[must_use]
    pub fn help(mut self, advice: impl Into<String>) -> Self {
        self.0.help = Some(advice.into());
        self
    }

    /// What went wrong, without where.
    pub fn what(&self) -> String {
        match &self.0.source {
            Some(source) => format!("{}: {source}", self.0.what),
            None => self.0.what.clone(),
        }
    }

    /// Where it happened, outermost first.
    pub fn places(&self) -> impl Iterator<Item = &str> {
        self.0.context.iter().rev().map(String::as_str)
    }

    /// What would work, if something is known.
    pub fn advice(&self) -> Option<&str> {
        self.0.help.as_deref()
    }

    /// The input is at fault: a malformed file, a bad number, an impossible budget, an unknown name.
    pub fn is_input(&self) -> bool {
        self.0.kind == Kind::Input
    }

    /// The request is sound but outside of what can be compiled.
    pub fn is_unsupported(&self) -> bool {
        self.0.kind == Kind::Unsupported
    }

    /// Verification failed: the files contradict each other.
    pub fn is_disagreement(&self) -> bool {
        self.0.kind == Kind::Disagreement
    }

    /// The operating system refused a read or a write.
    pub fn is_io(&self) -> bool {
        self.0.kind == Kind::Io
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for place in self.0.context.iter().rev() {
            write!(f, "{place}: ")?;
        }
        f.write_str(&self.0.what)?;
        if let Some(source) = &self.0.source {
            write!(f, ": {source}")?;
        }
        if let Some(help) = &self.0.help {
            write!(f, "\n  help: {help}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_deref().map(|e| e as _)
    }
}

/// All values, or the first error in their order, whichever thread fails first.
pub(crate) fn in_order<T: Send>(results: impl IndexedParallelIterator<Item = Result<T>>) -> Result<Vec<T>> {
    results.collect::<Vec<_>>().into_iter().collect()
}

/// Adds a place to the error of a `Result`.
pub(crate) trait At<T> {
    /// Says where it happened.
    fn at(self, place: impl FnOnce() -> String) -> Result<T>;
}

impl<T> At<T> for Result<T> {
    fn at(self, place: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|e| e.at(place()))
    }
}

/// The known name nearest to `name`, the first of several, if one is near enough to be what was meant.
pub(crate) fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|k| (strsim::damerau_levenshtein(&name.to_lowercase(), k), k))
        .min_by_key(|(distance, _)| *distance)
        .filter(|(distance, k)| *distance <= (k.len() / 2).max(2))
        .map(|(_, k)| k)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_says_where_what_and_what_would_work() {
        let e = Error::input("threshold is NaN").at("feature 3").at("spec.toml").help("give a finite threshold");
        assert_eq!(e.to_string(), "spec.toml: feature 3: threshold is NaN\n  help: give a finite threshold");
        assert!(e.is_input() && !e.is_unsupported());
    }

    #[test]
    fn nearest_name() {
        assert_eq!(nearest("gleu", ["relu", "gelu", "silu"]), Some("gelu"));
        assert_eq!(nearest("slu", ["silu", "elu"]), Some("silu"));
        assert_eq!(nearest("quux_activation", ["relu", "gelu"]), None);
    }
}
