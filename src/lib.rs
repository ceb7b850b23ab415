//! Compile interventions on a transformer's residual stream into certified MLP weights.

pub mod activation;
pub mod algebra;
pub mod atom;
pub mod certify;
pub mod error;
pub mod expr;
pub mod interval;
pub mod number;
pub mod piecewise;
pub mod report;
pub mod sae;
pub mod spec;
pub mod stack;
pub mod tensors;

pub use error::Error;
