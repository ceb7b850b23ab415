//! Huge and hostile files: no reader allocates by what a header claims, or by a file's size.
//!
//! The files are sparse: their holes read as zeros and take no room on the disk. An allocator counts the bytes that are held.

use std::alloc::{GlobalAlloc, Layout, System};
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use neurograft::certificate::CertificateFile;
use neurograft::gguf::GgufFile;
use neurograft::inspect::inspect;
use neurograft::sae::Sae;
use neurograft::spec::Spec;
use neurograft::tensors::TensorFile;
use neurograft::vectors::VectorFile;

struct Counting;

static HELD: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: everything is handed to the system's allocator; the counters do not touch memory.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        PEAK.fetch_max(HELD.fetch_add(layout.size(), Relaxed) + layout.size(), Relaxed);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Relaxed);
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const GB: u64 = 1_000_000_000;

/// Bytes that are held at most while `run` runs, beyond those before it.
fn peak(run: impl FnOnce()) -> usize {
    let before = HELD.load(Relaxed);
    PEAK.store(before, Relaxed);
    run();
    PEAK.load(Relaxed) - before
}

/// A file of a size that begins with some bytes, and ends with others.
fn sparse(path: &Path, start: &[u8], end: &[u8], size: u64) {
    let mut file = File::create(path).unwrap();
    file.write_all(start).unwrap();
    file.set_len(size).unwrap();
    file.seek(SeekFrom::Start(size - end.len() as u64)).unwrap();
    file.write_all(end).unwrap();
}

fn safetensors(header: &str) -> Vec<u8> {
    let padded = format!("{header:<width$}", width = header.len().next_multiple_of(8));
    [&(padded.len() as u64).to_le_bytes(), padded.as_bytes()].concat()
}

fn npy(header: &str) -> Vec<u8> {
    [b"\x93NUMPY\x01\x00", &(header.len() as u16).to_le_bytes()[..], header.as_bytes()].concat()
}

/// The last records of a ZIP archive with 64-bit numbers: entries, and where the directory starts.
fn zip_end(size: u64, entries: u64, directory: u64) -> Vec<u8> {
    let end64 = size - 98;
    let mut out = b"PK\x06\x06".to_vec();
    out.resize(24, 0);
    out.extend(entries.to_le_bytes());
    out.extend(entries.to_le_bytes());
    out.extend((entries.saturating_mul(46)).to_le_bytes());
    out.extend(directory.to_le_bytes());
    out.extend(b"PK\x06\x07\0\0\0\0");
    out.extend(end64.to_le_bytes());
    out.extend(1u32.to_le_bytes());
    out.extend(b"PK\x05\x06\0\0\0\0");
    out.extend([0xff; 12]);
    out.extend([0; 2]);
    assert_eq!(out.len(), 98);
    out
}

#[test]
fn nothing_is_allocated_by_a_claim() {
    let dir = tempfile::tempdir().unwrap();
    let size = 10 * GB;
    let gguf =
        |tensors: u64, values: u64| [b"GGUF\x03\0\0\0", &tensors.to_le_bytes()[..], &values.to_le_bytes()].concat();
    // A value `a`: an array of 1.2e9 texts.
    let texts = [
        &gguf(0, 1)[..],
        &1u64.to_le_bytes(),
        b"a",
        &9u32.to_le_bytes(),
        &8u32.to_le_bytes(),
        &1_200_000_000u64.to_le_bytes(),
    ]
    .concat();
    let entry = [b"PK\x03\x04".to_vec(), vec![0; 26]].concat();
    let cases: Vec<(&str, Vec<u8>, Vec<u8>)> = vec![
        ("zeros.safetensors", vec![], vec![]),
        ("long-header.safetensors", (size - 8).to_le_bytes().to_vec(), vec![]),
        ("header-of-zeros.safetensors", 99_000_000u64.to_le_bytes().to_vec(), vec![]),
        (
            "claims.safetensors",
            safetensors(r#"{"w":{"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,16]}}"#),
            vec![],
        ),
        ("too-long.npy", npy("{'descr': '<f4', 'fortran_order': False, 'shape': (9999999999999,), }"), vec![]),
        ("header.npy", b"\x93NUMPY\x02\x00\xff\xff\xff\xff".to_vec(), vec![]),
        ("no-directory.npz", entry.clone(), vec![]),
        ("directory.npz", entry.clone(), zip_end(size, u64::MAX, 0)),
        ("directory-of-zeros.pt", entry, zip_end(size, 200_000_000, GB)),
        ("tensors.gguf", gguf(300_000_000, 0), vec![]),
        ("values.gguf", gguf(0, 700_000_000), vec![]),
        ("texts.gguf", texts, vec![]),
    ];
    for (name, start, end) in cases {
        let path = dir.path().join(name);
        sparse(&path, &start, &end, size);
        let held = peak(|| {
            assert!(TensorFile::open_any(&path).is_err(), "{name}");
            assert!(VectorFile::open(&path).is_err(), "{name}");
            assert!(GgufFile::open(&path).is_err(), "{name}");
            assert!(Sae::open(&path).is_err(), "{name}");
            assert!(inspect(&path).is_err(), "{name}");
        });
        // A header of safetensors may have 100 MB; this one is given up at its first byte.
        assert!(held < 1 << 20, "{name}: {held} bytes");
        std::fs::remove_file(path).unwrap();
    }

    for name in ["certificate.json", "cfg.json", "config.json", "hyperparams.json", "spec.json", "spec.toml"] {
        sparse(&dir.path().join(name), b"", b"", size);
    }
    for name in ["sae_weights.safetensors", "sae.safetensors", "ae.pt", "params.npz", "block.safetensors"] {
        sparse(&dir.path().join(name), b"", b"", size);
    }
    let held = peak(|| {
        let path = |name: &str| dir.path().join(name);
        assert!(CertificateFile::read(&path("certificate.json")).is_err());
        assert!(neurograft::verify::verify(dir.path()).is_err());
        for name in ["spec.json", "spec.toml"] {
            assert!(Spec::read_all(path(name)).is_err());
        }
        for name in ["sae_weights.safetensors", "sae.safetensors", "ae.pt", "params.npz"] {
            assert!(Sae::open(path(name)).is_err() && inspect(&path(name)).is_err(), "{name}");
        }
    });
    // Specifications and configurations are read up to 16 MiB, then refused; doubling buffers hold twice that.
    assert!(held < 80 << 20, "{held} bytes");

    // Consistent, and large: what is asked for is read, nothing else.
    let path = dir.path().join("large.npy");
    let header = npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000, 2400), }");
    sparse(&path, &header, &7f32.to_le_bytes(), header.len() as u64 + 9_600_000_000);
    let held = peak(|| {
        let row = VectorFile::open(&path).unwrap().vector(None, Some(999_999)).unwrap();
        assert_eq!((row[0], row[2399]), (0.0, 7.0));
    });
    assert!(held < 1 << 20, "{held} bytes");

    // 100 features of a wide SAE whose features are columns: the rows themselves, in f64, a few times.
    let (d, f) = (4096u64, 65_536u64);
    let sae = dir.path().join("wide");
    std::fs::create_dir(&sae).unwrap();
    let cfg = format!(r#"{{"architecture": "standard", "d_in": {d}, "d_sae": {f}, "dtype": "float32"}}"#);
    std::fs::write(sae.join("cfg.json"), cfg).unwrap();
    let (matrix, vector, row) = (d * f * 4, f * 4, d * 4);
    let header = safetensors(&format!(
        r#"{{"W_enc":{{"dtype":"F32","shape":[{d},{f}],"data_offsets":[0,{}]}},"W_dec":{{"dtype":"F32","shape":[{f},{d}],"data_offsets":[{},{}]}},"b_enc":{{"dtype":"F32","shape":[{f}],"data_offsets":[{},{}]}},"b_dec":{{"dtype":"F32","shape":[{d}],"data_offsets":[{},{}]}}}}"#,
        matrix,
        matrix,
        2 * matrix,
        2 * matrix,
        2 * matrix + vector,
        2 * matrix + vector,
        2 * matrix + vector + row
    ));
    sparse(&sae.join("sae_weights.safetensors"), &header, &[], header.len() as u64 + 2 * matrix + vector + row);
    let held = peak(|| {
        let indices: Vec<usize> = (0..100).map(|k| k * 655).collect();
        assert_eq!(Sae::open(&sae).unwrap().features(&indices).unwrap().len(), 100);
    });
    let rows = 100 * 2 * 4096 * 8;
    assert!(held < 4 * rows, "{held} bytes");
}
