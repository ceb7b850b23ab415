//! Files written whole or not at all, by a program that may be told to end. One test: what is pending is the whole program's.

use std::fs;
use std::io::Write;

use neurograft::files::{WholeDirectory, WholeFile, abandon, persist_together, staged};

#[test]
fn nothing_half_written_is_left_behind() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let left = || fs::read_dir(dir.path()).unwrap().count();

    // Several files: none without all of them.
    let there = path("a");
    let missing = path("no such folder").join("b");
    let first = staged(&there, &[1]).unwrap();
    assert!(!there.exists() && staged(&missing, &[2]).is_err());
    drop(first);
    assert_eq!(left(), 0);
    persist_together(vec![staged(&there, &[1]).unwrap(), staged(&path("b"), &[2]).unwrap()]).unwrap();
    assert_eq!((fs::read(&there).unwrap(), fs::read(path("b")).unwrap()), (vec![1], vec![2]));

    // What has its place is not abandoned, what has none is.
    assert!(!abandon());
    let mut file = WholeFile::new(&path("c")).unwrap();
    file.file().write_all(b"half").unwrap();
    let directory = WholeDirectory::new(&path("d")).unwrap();
    fs::write(directory.path().join("shard"), b"half").unwrap();
    fs::create_dir(directory.path().join("folder")).unwrap();
    assert_eq!(left(), 4);
    assert!(abandon());
    assert_eq!(left(), 2);
    drop((file, directory));

    let directory = WholeDirectory::new(&path("d")).unwrap();
    directory.persist().unwrap();
    assert!(!abandon() && path("d").is_dir());
}
