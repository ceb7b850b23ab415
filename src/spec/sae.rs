//! The field `sae`: a path, or a table of the path and what the SAE's files leave open.

use std::fmt;
use std::path::PathBuf;

use serde::de::value::MapAccessDeserializer;
use serde::de::{self, Deserialize, Deserializer, MapAccess, Visitor};

use crate::error::{At, Error, Result};
use crate::sae::SaeOptions;

/// As it is written.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    path: PathBuf,
    layout: Option<String>,
    threshold: Option<f64>,
    norm_scaling_factor: Option<f64>,
}

/// Before it is checked.
pub(super) struct Sae(Table);

impl Sae {
    pub(super) fn check(self) -> Result<(PathBuf, SaeOptions)> {
        let Table { path, layout, threshold, norm_scaling_factor } = self.0;
        if path.as_os_str().is_empty() {
            return Err(Error::input("sae is empty").help("name the directory of the SAE"));
        }
        let options = || -> Result<SaeOptions> {
            Ok(SaeOptions {
                layout: layout.map(|name| name.parse()).transpose()?,
                threshold: threshold
                    .map(|t| super::bounded("threshold", t, |t| t >= 0.0, "finite and at least 0"))
                    .transpose()?,
                norm_scaling_factor: norm_scaling_factor
                    .map(|s| super::bounded("norm_scaling_factor", s, |s| s > 0.0, "positive and finite"))
                    .transpose()?,
            })
        };
        Ok((path, options().at(|| "sae".into())?))
    }
}

impl<'de> Deserialize<'de> for Sae {
    fn deserialize<D: Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        struct PathOrTable;
        impl<'de> Visitor<'de> for PathOrTable {
            type Value = Table;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the path of an SAE, or { path = \"...\", ... }")
            }

            fn visit_str<E: de::Error>(self, path: &str) -> std::result::Result<Table, E> {
                Ok(Table { path: path.into(), layout: None, threshold: None, norm_scaling_factor: None })
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> std::result::Result<Table, A::Error> {
                Table::deserialize(MapAccessDeserializer::new(map))
            }
        }
        d.deserialize_any(PathOrTable).map(Sae)
    }
}
