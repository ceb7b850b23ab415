//! Fields of an SAE's configuration, each with the type that it must have.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::tensors::quoted;

/// No configuration is this long; what is longer is not read.
pub(super) const MAX_CFG_BYTES: u64 = 16 << 20;

/// The fields of a configuration, or of an object inside of it.
#[derive(Clone, Debug, Default)]
pub(super) struct Fields {
    top: Map<String, Value>,
}

impl Fields {
    /// Reads a file.
    pub(super) fn read(path: &Path) -> Result<Fields> {
        let place = path.display().to_string();
        let io = |e| Error::io(format!("{place}: cannot read the SAE's configuration"), e);
        let mut text = String::new();
        File::open(path).map_err(io)?.take(MAX_CFG_BYTES + 1).read_to_string(&mut text).map_err(io)?;
        Fields::parse(&text).map_err(|e| e.at(place))
    }

    /// Reads a file that need not be there.
    pub(super) fn read_if_there(path: &Path) -> Result<Option<Fields>> {
        if path.is_file() { Fields::read(path).map(Some) } else { Ok(None) }
    }

    pub(super) fn parse(text: &str) -> Result<Fields> {
        if text.len() as u64 > MAX_CFG_BYTES {
            return Err(Error::input(format!("longer than {MAX_CFG_BYTES} bytes: no SAE configuration")));
        }
        let value: Value = serde_json::from_str(text).map_err(|e| Error::input(format!("malformed JSON: {e}")))?;
        match value {
            Value::Object(top) => Ok(Fields { top }),
            _ => Err(Error::input("not a JSON object").help("a configuration is an object: { \"d_in\": ... }")),
        }
    }

    pub(super) fn get(&self, name: &str) -> Option<&Value> {
        self.top.get(name).filter(|v| !v.is_null())
    }

    /// An object inside of this one.
    pub(super) fn inside(&self, name: &str) -> Option<Fields> {
        Some(Fields { top: self.get(name)?.as_object()?.clone() })
    }

    /// A dimension that must be given.
    pub(super) fn dimension(&self, name: &str) -> Result<usize> {
        self.count(name)?.filter(|n| *n > 0).ok_or_else(|| match self.get(name) {
            Some(value) => wrong_type(name, value, "a positive integer"),
            None => Error::input(format!("the field {name} is missing"))
                .help(format!("write \"{name}\": a positive integer")),
        })
    }

    /// An integer from 0.
    pub(super) fn count(&self, name: &str) -> Result<Option<usize>> {
        let Some(value) = self.get(name) else { return Ok(None) };
        match value.as_u64().and_then(|n| usize::try_from(n).ok()) {
            Some(n) => Ok(Some(n)),
            None => Err(wrong_type(name, value, "a positive integer")),
        }
    }

    /// A finite number.
    pub(super) fn number(&self, name: &str) -> Result<Option<f64>> {
        let Some(value) = self.get(name) else { return Ok(None) };
        value.as_f64().filter(|x| x.is_finite()).map(Some).ok_or_else(|| wrong_type(name, value, "a number"))
    }

    pub(super) fn text(&self, name: &str) -> Result<Option<&str>> {
        let Some(value) = self.get(name) else { return Ok(None) };
        value.as_str().map(Some).ok_or_else(|| wrong_type(name, value, "a string"))
    }

    pub(super) fn flag(&self, name: &str) -> Result<Option<bool>> {
        let Some(value) = self.get(name) else { return Ok(None) };
        value.as_bool().map(Some).ok_or_else(|| wrong_type(name, value, "true or false"))
    }

    /// What only describes: never an error.
    pub(super) fn described(&self, name: &str) -> Option<String> {
        self.get(name)?.as_str().map(str::to_string)
    }
}

pub(super) fn wrong_type(name: &str, value: &Value, wanted: &str) -> Error {
    Error::input(format!("the field {name} must be {wanted}, not {}", quoted(&value.to_string())))
}
