//! Compile interventions on a transformer's residual stream into certified MLP weights.
//!
//! An intervention adds Σ_j c_j(z)·v_j to the residual x at every token, where z = ⟨w, x⟩ + b is a pre-activation (a row
//! of an SAE's encoder, a probe), c_j a scalar response (−relu(z) ablates a feature), and v_j a write direction. The crate
//! finds the weights of a small MLP that computes it with the host's own activation, rounds them to the host's number
//! format, and proves how far the rounded weights are from the intervention. [`compile()`] is the whole pipeline:
//!
//! ```
//! use neurograft::certify::Domain;
//! use neurograft::{Options, PreActivation, Response, Target, compile};
//!
//! // Cap a feature at 8: x ← x − max(z − 8, 0)·v, for a Llama-style MLP (gated silu) with f32 weights.
//! let response = Response {
//!     name: "cap".into(),
//!     expr: "-relu(z - 8)".parse()?,
//!     pre_activations: vec![PreActivation { w: vec![0.6, 0.8], b: -0.5 }],
//!     write: vec![0.8, -0.6],
//!     domain: Domain::new(-20.0, 20.0)?,
//!     band: 0.0,
//! };
//! let compiled = compile(&Target { responses: vec![response] }, &Options { norm: Some(20.0), ..Options::default() })?;
//!
//! assert_eq!(compiled.block.intermediate_size(), 1);
//! // For every x with ‖x‖ ≤ 20, in real arithmetic:
//! let bound = compiled.proof.total.as_ref().expect("a norm was given").outside;
//! assert!(bound < 1e-5);
//! # Ok::<(), neurograft::Error>(())
//! ```
//!
//! A tolerance that is missed is an outcome ([`certify::Status::BestEffort`]); an [`Error`] is for input that is
//! malformed or that nothing here can compile. Results are a function of the input alone.
//!
//! # Modules
//!
//! In reading order; each may use those above it. What is *trusted* is what a certificate rests on.
//!
//! | | |
//! |---|---|
//! | trusted: numbers | [`interval`], [`rational`], [`number`] |
//! | trusted: functions | [`activation`], [`atom`], [`algebra`], [`expr`], [`piecewise`], [`stack`] |
//! | trusted: proofs | [`certify`] for a stack, [`lower`] for what no stack can reach, [`mod@derive`] for a block, [`ridge`] for sums over pre-activations |
//! | trusted: engines | [`arithmetic`], [`landscape`], [`exhaust`], [`running`], [`tokens`], [`deployed`] |
//! | search | [`canonical`], [`exact`], [`minimax`], [`linear_program`], [`duals`], [`scaling`], [`dither`], [`solve`] |
//! | weights and files | [`mod@format`], [`tensors`], [`gguf`], [`vectors`], [`residuals`], [`block`], [`certificate`], [`files`] |
//! | hosts | [`carriers`], [`host`], [`mod@reference`] |
//! | the pipeline | [`mod@compile`], [`verify`] |
//! | what users bring | [`sae`], [`spec`], [`source`], [`intervention`], [`embedded`] |
//! | checkpoints | [`splice`] |
//! | what they see | [`inspect`], [`observe`], [`formats`], [`mod@calibrate`], [`explain`], [`panels`], [`report`] |
//! | | [`error`] |
//!
//! `docs/architecture.md`, `docs/mathematics.md` and `docs/certificate.md` in the repository say more.

#![warn(missing_docs)]

pub mod activation;
pub mod algebra;
pub mod arithmetic;
pub mod atom;
pub mod block;
pub mod calibrate;
pub mod canonical;
pub mod carriers;
pub mod certificate;
pub mod certify;
pub mod compile;
pub mod deployed;
pub mod derive;
pub mod dither;
pub mod duals;
pub mod embedded;
pub mod error;
pub mod eval;
pub mod exact;
pub mod exhaust;
pub mod explain;
pub mod expr;
pub mod files;
pub mod format;
pub mod formats;
pub mod gated;
pub mod gates;
pub mod gguf;
pub mod host;
pub mod inspect;
pub mod interval;
pub mod intervention;
pub mod landscape;
pub mod linear_program;
pub mod lower;
pub mod minimax;
pub mod number;
pub mod observe;
pub mod panels;
pub mod piecewise;
pub mod rational;
pub mod reference;
pub mod report;
pub mod residuals;
pub mod ridge;
pub mod running;
pub mod sae;
pub mod scaling;
pub mod solve;
pub mod source;
pub mod spec;
pub mod splice;
pub mod stack;
pub mod tensors;
pub mod tokens;
pub mod vectors;
pub mod verify;

pub use compile::{Compiled, Options, PreActivation, Response, Target, compile};
pub use error::Error;
