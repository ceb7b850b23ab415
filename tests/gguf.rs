//! GGUF files: reading, writing, refusing.

mod tiny;

use std::borrow::Cow;

use neurograft::gguf::{GgmlType, GgufFile, Kind, TensorInfo, Value, Writer};
use proptest::prelude::*;
use serde_json::Value as Json;
use tiny::{Meta, Tiny};

fn blocks() -> Json {
    serde_json::from_str(include_str!("data/gguf_blocks.json")).unwrap()
}

fn unhex(text: &Json) -> Vec<u8> {
    let text = text.as_str().unwrap();
    (0..text.len()).step_by(2).map(|k| u8::from_str_radix(&text[k..k + 2], 16).unwrap()).collect()
}

#[test]
fn sizes_of_blocks_are_those_of_ggml() {
    let sizes = &blocks()["sizes"];
    for id in 0..64 {
        let known = sizes.as_object().unwrap().iter().find(|(_, s)| s[0] == id);
        let Some(own) = GgmlType::of(id) else {
            assert!(known.is_none(), "{id}");
            continue;
        };
        // Newer than that gguf-py.
        let Some((name, size)) = known else { continue };
        assert_eq!((own.name, own.block), (name.as_str(), size[1].as_u64().unwrap() as usize));
        // gguf-py counts two f32 scales, ggml's struct has two halves; no file holds it.
        if name != "Q8_1" {
            assert_eq!(own.bytes, size[2].as_u64().unwrap() as usize, "{name}");
        }
    }
}

#[test]
fn blocks_are_read_as_gguf_py_reads_them() {
    let all = blocks();
    for (name, block) in all["blocks"].as_object().unwrap() {
        let id = all["sizes"][name][0].as_u64().unwrap() as u32;
        let format = GgmlType::of(id).unwrap();
        let mut t = Tiny::default();
        t.tensors.push(("w".into(), vec![format.block as u64], id, unhex(&block["bytes"])));
        let file = GgufFile::from_bytes("x.gguf", t.bytes()).unwrap();
        let values = file.tensor("w").unwrap().values().unwrap();
        let expected = unhex(&block["values"]);
        assert_eq!(expected.len(), 4 * values.len());
        for (k, (v, e)) in values.iter().zip(expected.chunks_exact(4)).enumerate() {
            let e = f64::from(f32::from_le_bytes(e.try_into().unwrap()));
            // gguf-py rounds to f32 after each step; scale and minimum may cancel.
            assert!((v - e).abs() <= 1e-6 * e.abs().max(1.0), "{name}[{k}]: {v}, gguf-py {e}");
        }
    }
}

fn small() -> Tiny {
    let mut t = Tiny::default();
    t.metadata.push(("general.architecture".into(), Meta::Text("llama".into())));
    t.metadata.push(("n".into(), Meta::U32(7)));
    t.metadata.push(("eps".into(), Meta::F32(1e-5)));
    t.metadata.push(("words".into(), Meta::Texts(vec!["a".into(), "".into(), "bcd".into()])));
    t.metadata.push(("per layer".into(), Meta::U32s(vec![3, 1, 2])));
    t.tensors.push(("a".into(), vec![3, 2], 0, tiny::f32s(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])));
    t.tensors.push(("b".into(), vec![32], 8, vec![0; 34]));
    t
}

#[test]
fn reads_what_an_independent_writer_wrote() {
    let file = GgufFile::from_bytes("x.gguf", small().bytes()).unwrap();
    assert_eq!((file.version(), file.alignment()), (3, 32));
    assert_eq!(file.value("general.architecture").unwrap().as_text(), Some("llama"));
    assert_eq!(file.value("n").unwrap().as_u64(), Some(7));
    assert_eq!(file.value("eps").unwrap().as_f64(), Some(f64::from(1e-5f32)));
    let words = file.value("words").unwrap();
    assert_eq!((words.len(), words.kind()), (Some(3), Kind::Array));
    let picked = words.select(&[2, 0, 0]).unwrap();
    let texts: Vec<_> = picked.elements().unwrap().iter().map(|e| e.as_text().unwrap().to_string()).collect();
    assert_eq!(texts, ["bcd", "a", "a"]);
    let layers = file.value("per layer").unwrap().select(&[0, 1, 1, 2]).unwrap();
    let numbers: Vec<_> = layers.elements().unwrap().iter().map(|e| e.as_u64().unwrap()).collect();
    assert_eq!(numbers, [3, 1, 1, 2]);
    let a = file.tensor("a").unwrap();
    assert_eq!((a.info().width(), a.info().rows(), a.info().bytes()), (3, 2, 24));
    assert_eq!(a.rows(1..2).unwrap(), [4.0, 5.0, 6.0]);
    assert!(a.rows(1..3).unwrap_err().is_input());
    assert_eq!(file.tensor("b").unwrap().values().unwrap(), [0.0; 32]);
    assert!(file.tensor("output_norm.weight").unwrap_err().is_input());
}

/// Copies a file through the reader and the writer.
fn copied(bytes: Vec<u8>) -> Vec<u8> {
    let file = GgufFile::from_bytes("x.gguf", bytes).unwrap();
    let metadata: Vec<(Cow<'_, str>, Value<'_>)> = file.metadata().map(|(k, v)| (k.into(), v)).collect();
    let mut writer = Writer::new(Vec::new(), file.version(), &metadata, file.tensors().to_vec()).unwrap();
    for t in file.tensors() {
        // In pieces, as a streaming copy does.
        for piece in file.tensor(&t.name).unwrap().data().chunks(7) {
            assert_eq!(writer.current().unwrap().0, t);
            writer.append(piece).unwrap();
        }
    }
    let (out, written) = writer.finish();
    assert_eq!(out.len() as u64, written);
    out
}

#[test]
fn a_copy_is_the_file() {
    assert_eq!(copied(small().bytes()), small().bytes());
    let aligned = Tiny { alignment: Some(64), version: 2, ..small() };
    assert_eq!(copied(aligned.bytes()), aligned.bytes());
    let empty = Tiny::default();
    assert_eq!(copied(empty.bytes()), empty.bytes());
}

#[test]
fn a_file_cut_short_is_refused_wherever_it_is_cut() {
    let bytes = small().bytes();
    // What follows the last tensor is padding.
    for length in 0..bytes.len() - 30 {
        let e = GgufFile::from_bytes("x.gguf", &bytes[..length]).expect_err("cut short");
        assert!(e.is_input() && e.to_string().starts_with("x.gguf: "), "{length}: {e}");
    }
}

#[test]
fn hostile_files_are_refused_in_words() {
    let changed = |change: &dyn Fn(&mut Tiny)| {
        let mut t = small();
        change(&mut t);
        t.bytes()
    };
    let patched = |at: usize, with: &[u8]| {
        let mut bytes = small().bytes();
        bytes[at..at + with.len()].copy_from_slice(with);
        bytes
    };
    let table: Vec<(&str, Vec<u8>)> = vec![
        ("truncated", Vec::new()),
        ("starts with", b"PK\x03\x04 and more that does not matter".to_vec()),
        ("git lfs pull", b"version https://git-lfs.github.com/spec/v1\noid sha256:".to_vec()),
        ("big-endian", patched(4, &[0, 0, 0, 3])),
        ("GGUF version 1", patched(4, &[1, 0, 0, 0])),
        ("GGUF version 4", patched(4, &[4, 0, 0, 0])),
        ("tensors are claimed", patched(8, &u64::MAX.to_le_bytes())),
        ("metadata values are claimed", patched(16, &u64::MAX.to_le_bytes())),
        ("a metadata key at byte", patched(24, &(u64::MAX / 2).to_le_bytes())),
        ("stands there twice", changed(&|t| t.metadata.push(("n".into(), Meta::U32(8))))),
        ("unknown kind 13", changed(&|t| t.metadata.push(("x".into(), Meta::Raw(13, vec![0; 8]))))),
        ("array of arrays", changed(&|t| t.metadata.push(("x".into(), Meta::Raw(9, [[9, 0, 0, 0]; 5].concat()))))),
        (
            "elements of an array are claimed",
            changed(&|t| {
                t.metadata
                    .push(("x".into(), Meta::Raw(9, [&4u32.to_le_bytes()[..], &u64::MAX.to_le_bytes()].concat())));
            }),
        ),
        (
            "texts of an array are claimed",
            changed(&|t| {
                t.metadata
                    .push(("x".into(), Meta::Raw(9, [&8u32.to_le_bytes()[..], &(1u64 << 40).to_le_bytes()].concat())));
            }),
        ),
        ("no power of two", changed(&|t| t.metadata.push(("general.alignment".into(), Meta::U32(48))))),
        ("no power of two", changed(&|t| t.metadata.push(("general.alignment".into(), Meta::U32(0))))),
        ("no power of two", changed(&|t| t.metadata.push(("general.alignment".into(), Meta::Text("32".into()))))),
        ("do not lie in the file", changed(&|t| t.metadata.push(("general.alignment".into(), Meta::U32(1 << 31))))),
        ("'a' stands there twice", changed(&|t| t.tensors[1].0 = "a".into())),
        ("a name of 64 bytes", changed(&|t| t.tensors[0].0 = "n".repeat(64))),
        ("is no text", changed(&|t| t.tensors[0].0 = String::new())),
        ("5 dimensions", changed(&|t| t.tensors[0].1 = vec![1, 1, 1, 1, 6])),
        ("0 dimensions", changed(&|t| t.tensors[0].1 = vec![])),
        ("no whole number", changed(&|t| t.tensors[0].1 = vec![0, 2])),
        ("no whole number", changed(&|t| t.tensors[0].1 = vec![1 << 33, 1 << 33])),
        ("no whole number", changed(&|t| t.tensors[1].1 = vec![33])),
        ("do not lie in the file", changed(&|t| t.tensors[0].1 = vec![1 << 40])),
        ("number format 4 is unknown", changed(&|t| t.tensors[0].2 = 4)),
        ("number format 99 is unknown", changed(&|t| t.tensors[0].2 = 99)),
        ("overlap", changed(&|t| t.offsets = Some(vec![0, 0]))),
        ("no multiple of 32", changed(&|t| t.offsets = Some(vec![0, 24]))),
        ("do not lie in the file", changed(&|t| t.offsets = Some(vec![0, 1 << 20]))),
        ("do not lie in the file", changed(&|t| t.offsets = Some(vec![0, u64::MAX - 31]))),
    ];
    for (words, bytes) in table {
        let e = GgufFile::from_bytes("x.gguf", bytes).expect_err(words);
        assert!(e.to_string().contains(words), "{words}: {e}");
        assert!(e.is_input() || e.is_unsupported(), "{e}");
    }
}

#[test]
fn files_that_cannot_be_opened() {
    let dir = tempfile::tempdir().unwrap();
    assert!(GgufFile::open(dir.path().join("none.gguf")).unwrap_err().is_io());
    assert!(GgufFile::open(dir.path()).unwrap_err().is_input());
}

fn meta() -> impl Strategy<Value = Meta> {
    prop_oneof![
        any::<u32>().prop_map(Meta::U32),
        any::<f32>().prop_map(Meta::F32),
        ".{0,9}".prop_map(Meta::Text),
        prop::collection::vec(any::<u32>(), 0..5).prop_map(Meta::U32s),
        prop::collection::vec(".{0,5}", 0..5).prop_map(Meta::Texts),
        (0u8..2).prop_map(|b| Meta::Raw(7, vec![b])),
        any::<[u8; 8]>().prop_map(|b| Meta::Raw(12, b.to_vec())),
    ]
}

fn tensor() -> impl Strategy<Value = (Vec<u64>, u32, u8)> {
    let format = prop::sample::select(vec![0u32, 1, 2, 3, 8, 12, 24, 30, 39]);
    (prop::collection::vec(1u64..4, 1..4), format, any::<u8>())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn any_file_comes_back_as_it_was(
        metadata in prop::collection::btree_map("[a-z.]{1,12}", meta(), 0..6),
        tensors in prop::collection::vec(tensor(), 0..5),
        alignment in prop::option::of(prop::sample::select(vec![8u32, 16, 32, 128])),
    ) {
        let mut t = Tiny { alignment, metadata: metadata.into_iter().collect(), ..Tiny::default() };
        for (k, (mut dims, id, fill)) in tensors.into_iter().enumerate() {
            let format = GgmlType::of(id).unwrap();
            let blocks: u64 = dims.iter().product();
            dims[0] *= format.block as u64;
            t.tensors.push((format!("t{k}"), dims, id, vec![fill; blocks as usize * format.bytes]));
        }
        let bytes = t.bytes();
        prop_assert_eq!(copied(bytes.clone()), bytes);
    }

    #[test]
    fn damaged_files_are_read_or_refused(at in any::<prop::sample::Index>(), with in any::<u8>()) {
        let mut bytes = small().bytes();
        let at = at.index(bytes.len());
        bytes[at] = with;
        if let Ok(file) = GgufFile::from_bytes("x", bytes) {
            for t in file.tensors() {
                let _ = file.tensor(&t.name).unwrap().values();
            }
            for (_, v) in file.metadata() {
                let _ = (v.elements().map(|e| e.len()), v.as_u64(), v.as_f64());
            }
        }
    }

    #[test]
    fn any_bytes_after_the_magic_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
        let _ = GgufFile::from_bytes("x", [&b"GGUF\x03\0\0\0"[..], &bytes].concat());
    }
}

#[test]
fn sizes_follow_from_dimensions() {
    let t = TensorInfo { name: "t".into(), dims: vec![64, 3, 2], format: GgmlType::of(3).unwrap() };
    assert_eq!((t.width(), t.rows(), t.row_bytes(), t.bytes()), (64, 6, 40, 240));
}
