//! Compile interventions on a transformer's residual stream into certified MLP weights.

pub mod activation;
pub mod algebra;
pub mod atom;
pub mod block;
pub mod canonical;
pub mod certificate;
pub mod certify;
pub mod compile;
pub mod derive;
pub mod embedded;
pub mod error;
pub mod exact;
pub mod explain;
pub mod expr;
pub mod files;
pub mod format;
pub mod interval;
pub mod intervention;
pub mod minimax;
pub mod number;
pub mod observe;
pub mod panels;
pub mod piecewise;
pub mod rational;
pub mod report;
pub mod ridge;
pub mod sae;
pub mod solve;
pub mod spec;
pub mod stack;
pub mod tensors;
pub mod verify;

pub use compile::{Compiled, Options, PreActivation, Response, Target, compile};
pub use error::Error;
