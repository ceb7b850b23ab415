//! What a calibration found, in words.

use std::fmt;

use super::{Calibration, Settings, Switch};
use crate::expr::Expr;
use crate::number::Number;

impl Switch {
    /// "at z = 2.72331", "where z + z_1 - 3 > 0"
    fn place(&self) -> String {
        match self.form.affine().filter(|f| f.coefficients.len() == 1) {
            Some(form) => {
                let (k, slope) = form.coefficients.iter().next().expect("one coefficient");
                format!("at {} = {:.5}", Expr::Pre(*k), Number::from(-(&form.constant / slope)).to_f64())
            }
            None => format!("where {} > 0", self.form),
        }
    }
}

impl Calibration {
    /// How the ranges came about, in one line.
    pub fn how(&self) -> String {
        let Settings { quantile, margin, massive } = self.settings;
        let quantiles = if quantile == 1.0 {
            "the least and the greatest".to_string()
        } else {
            format!("the quantiles {} and {quantile}", decimal(1.0 - quantile))
        };
        let apart = match self.massive {
            0 => String::new(),
            n => format!("; {n} with norms above {massive} times the median left out"),
        };
        format!(
            "{quantiles} of {} tokens of {}, widened by {} %{apart}",
            self.tokens - self.massive,
            self.source,
            decimal(100.0 * margin)
        )
    }
}

/// A number without the dust of floating point.
fn decimal(x: f64) -> f64 {
    format!("{x:.9}").parse().unwrap_or(x)
}

impl fmt::Display for Calibration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} tokens of {}", self.tokens, self.source)?;
        writeln!(
            f,
            "norms: median {:.2}, largest {:.4}; norm = {}, {} tokens beyond it",
            self.median, self.largest, self.norm, self.beyond_norm
        )?;
        if let Some((least, most)) = self.massive_norms {
            writeln!(
                f,
                "apart: {} of them with norms of {least:.4} to {most:.4} (a sequence's first, often), which no certificate for ‖x‖ ≤ {} covers",
                self.massive, self.norm
            )?;
        }
        writeln!(f, "ranges: {}\n", self.how())?;
        let width = self.entries.iter().map(|e| e.label.chars().count()).max().unwrap_or(0).clamp(5, 60);
        writeln!(
            f,
            "{:<width$}  {:<6} {:>10} {:>10}  {:<20} {:>7} {:>7}",
            "entry", "", "least", "greatest", "range", "outside", "changed"
        )?;
        for e in &self.entries {
            for (k, r) in e.rows.iter().enumerate() {
                let first = k == 0;
                let cell = |text: String| if first { text } else { String::new() };
                writeln!(
                    f,
                    "{:<width$}  {:<6} {:>10.4} {:>10.4}  {:<20} {:>7} {:>7}",
                    cell(e.label.clone()),
                    r.name,
                    r.least,
                    r.most,
                    cell(format!("[{}, {}]", e.range.lo(), e.range.hi())),
                    cell(e.outside.to_string()),
                    cell(e.active.to_string())
                )?;
            }
            if e.rows.len() > 1 && !e.letters.is_empty() {
                writeln!(f, "{:<width$}    {}", "", e.letters)?;
            }
            for s in &e.switches {
                let Switch { radius, inside, above, .. } = s;
                writeln!(
                    f,
                    "{:<width$}    {}: {above} tokens beyond, {inside} within {radius} (its band)",
                    "",
                    s.place()
                )?;
            }
            if e.massive_outside > 0 {
                writeln!(f, "{:<width$}    outside of the range on {} of the tokens apart", "", e.massive_outside)?;
            }
        }
        let silent: Vec<&str> = self.entries.iter().filter(|e| e.active == 0).map(|e| &*e.label).collect();
        if !silent.is_empty() {
            writeln!(f, "\nno token is changed by: {}", silent.join("; "))?;
        }
        Ok(())
    }
}
