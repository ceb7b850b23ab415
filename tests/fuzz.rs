//! The fuzz targets on a stable compiler: the committed corpus, and a bounded number of simple mutations of each file.

#[path = "../fuzz/src/lib.rs"]
mod targets;

use std::path::Path;

/// Mutations of each file of the corpus; `FUZZ_ROUNDS` in the environment asks for another number.
const ROUNDS: usize = 200;

/// Reproducible numbers (Steele, Lea and Flood's SplitMix64).
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n.max(1) as u64) as usize
    }
}

/// One to three of: another byte, a cut, a doubled piece, a piece of another file, a large number.
fn mutated(data: &[u8], other: &[u8], random: &mut Random) -> Vec<u8> {
    let mut out = data.to_vec();
    for _ in 0..1 + random.below(3) {
        let at = random.below(out.len() + 1).min(out.len());
        let end = (at + random.below(16)).min(out.len());
        match random.below(6) {
            0 => drop(out.splice(at..(at + 1).min(out.len()), [random.below(256) as u8])),
            1 => out.truncate(at),
            2 => drop(out.splice(at..at, out[at..end].to_vec())),
            3 => {
                let from = random.below(other.len() + 1).min(other.len());
                out.splice(at..end, other[from..(from + 16).min(other.len())].iter().copied());
            }
            4 => drop(out.splice(at..end, b"99999999999999999999".iter().copied())),
            _ => drop(out.splice(at..end, [0xff; 8])),
        }
    }
    out
}

fn run(target: &str, each: impl Fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    let files: Vec<Vec<u8>> = files.iter().map(|f| std::fs::read(f).unwrap()).collect();
    assert!(!files.is_empty());
    let mut random = Random(6);
    let rounds = std::env::var("FUZZ_ROUNDS").map_or(ROUNDS, |n| n.parse().expect("FUZZ_ROUNDS is a number"));
    for data in &files {
        each(data);
        for _ in 0..rounds {
            let other = &files[random.below(files.len())];
            each(&mutated(data, other, &mut random));
        }
    }
}

#[test]
fn tensors() {
    run("tensors", targets::tensors);
}

#[test]
fn vectors() {
    run("vectors", targets::vectors);
}

#[test]
fn gguf() {
    run("gguf", targets::gguf);
}

#[test]
fn sae() {
    run("sae", targets::sae);
}

#[test]
fn spec() {
    run("spec", targets::spec);
}

#[test]
fn expr() {
    run("expr", targets::expr);
}

#[test]
fn certificate() {
    run("certificate", targets::certificate);
}
