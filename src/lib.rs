//! Compile interventions on a transformer's residual stream into certified MLP weights.

pub mod activation;
pub mod algebra;
pub mod atom;
pub mod canonical;
pub mod certify;
pub mod error;
pub mod exact;
pub mod expr;
pub mod format;
pub mod interval;
pub mod minimax;
pub mod number;
pub mod piecewise;
pub mod sae;
pub mod solve;
pub mod spec;
pub mod stack;
pub mod tensors;

pub use error::Error;
