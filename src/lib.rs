//! Compile interventions on a transformer's residual stream into certified MLP weights.

pub mod activation;
pub mod error;
pub mod interval;
pub mod minimax;
pub mod number;
