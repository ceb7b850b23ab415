//! Files and directories written whole or not at all.

use std::collections::BTreeSet;
use std::fs::{File, Permissions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use sha2::{Digest, Sha256};

use crate::error::{Error, Result};

/// Refuses a place where nothing can be written, before the work is done that is to be written there.
pub fn writable(place: &Path) -> Result<()> {
    let failed = |e| Error::io(format!("cannot write {}", place.display()), e);
    let Some(there) = place.ancestors().find(|p| !p.as_os_str().is_empty() && p.exists()) else {
        // A relative path of names that are not there yet.
        return tempfile::tempfile_in(".").map(drop).map_err(failed);
    };
    if !there.is_dir() {
        return Err(failed(std::io::ErrorKind::NotADirectory.into()));
    }
    tempfile::tempfile_in(there).map(drop).map_err(failed)
}

/// Temporary files and directories that are not in their places yet.
static PENDING: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// One of them, for as long as it is.
#[derive(Debug)]
struct Pending(PathBuf);

impl Pending {
    fn new(path: &Path) -> Pending {
        PENDING.lock().unwrap_or_else(PoisonError::into_inner).insert(path.to_path_buf());
        Pending(path.to_path_buf())
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        PENDING.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.0);
    }
}

/// Removes all that is half-written, for a program that is about to end; says whether there was anything.
pub fn abandon() -> bool {
    let pending = std::mem::take(&mut *PENDING.lock().unwrap_or_else(PoisonError::into_inner));
    for path in &pending {
        // Other threads may still be writing there.
        let gone = || if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
        let _ = (0..10).find(|_| gone().is_ok() || !path.exists());
    }
    !pending.is_empty()
}

/// What a failure to write a file is.
pub(crate) fn write_failed(place: &Path) -> impl Fn(std::io::Error) -> Error {
    let place = place.display().to_string();
    move |e| Error::io(format!("cannot write {place}"), e)
}

/// Writes a file through a temporary one in the same directory: a reader sees the old file or the new one, whole.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    staged(path, bytes)?.persist()
}

/// Puts several files in their places, none before all of them are on disk.
pub fn persist_together(files: Vec<WholeFile>) -> Result<()> {
    files.iter().try_for_each(|f| f.temporary.as_file().sync_all().map_err(write_failed(&f.place)))?;
    files.into_iter().try_for_each(WholeFile::persist)
}

/// A file with all of its content that is not in its place yet.
pub fn staged(path: &Path, bytes: &[u8]) -> Result<WholeFile> {
    let mut whole = WholeFile::new(path)?;
    whole.file().write_all(bytes).map_err(write_failed(path))?;
    Ok(whole)
}

/// A file that comes into being whole: written under another name beside its place, then renamed.
///
/// Dropped before [`WholeFile::persist`], it leaves nothing behind.
#[derive(Debug)]
pub struct WholeFile {
    temporary: tempfile::NamedTempFile,
    pending: Pending,
    place: PathBuf,
}

impl WholeFile {
    /// An empty file in the directory of `place`.
    pub fn new(place: &Path) -> Result<WholeFile> {
        let mut builder = tempfile::Builder::new();
        builder.prefix(".neurograft").suffix(".tmp");
        if let Some(p) = permissions() {
            builder.permissions(p);
        }
        let temporary = builder.tempfile_in(folder_of(place)).map_err(write_failed(place))?;
        Ok(WholeFile { pending: Pending::new(temporary.path()), temporary, place: place.to_path_buf() })
    }

    /// What to write to.
    pub fn file(&mut self) -> &mut File {
        self.temporary.as_file_mut()
    }

    /// What a failure to write it is.
    pub fn failed(&self, e: std::io::Error) -> Error {
        write_failed(&self.place)(e)
    }

    /// Puts the file in its place, once all of it is on disk. What is there already is replaced.
    pub fn persist(self) -> Result<()> {
        let failed = write_failed(&self.place);
        self.temporary.as_file().sync_all().map_err(&failed)?;
        self.temporary.persist(&self.place).map_err(|e| failed(e.error))?;
        drop(self.pending);
        Ok(())
    }
}

/// Writes and hashes what passes.
#[derive(Debug)]
pub struct Hashing<W> {
    inner: W,
    hash: Sha256,
    written: u64,
}

impl<W: Write> Hashing<W> {
    /// Nothing has passed yet.
    pub fn new(inner: W) -> Hashing<W> {
        Hashing { inner, hash: Sha256::new(), written: 0 }
    }

    /// How many bytes have passed.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// What was written to, and the SHA-256 of what has passed.
    pub fn finish(self) -> (W, String) {
        (self.inner, hex(self.hash))
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let n = self.inner.write(bytes)?;
        self.hash.update(&bytes[..n]);
        self.written += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.inner.flush()
    }
}

/// The SHA-256 of bytes.
pub fn sha256(bytes: &[u8]) -> String {
    hex(Sha256::new_with_prefix(bytes))
}

/// The SHA-256 of all that a reader has left; `passed` hears how many bytes have passed.
pub fn sha256_of(mut reader: impl Read, mut passed: impl FnMut(u64)) -> std::io::Result<String> {
    let (mut hash, mut buffer, mut all) = (Sha256::new(), vec![0; 1 << 20], 0);
    loop {
        let n = reader.read(&mut buffer)?;
        if n == 0 {
            return Ok(hex(hash));
        }
        hash.update(&buffer[..n]);
        all += n as u64;
        passed(all);
    }
}

fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
}

/// A directory that comes into being whole: filled under another name beside its place, then renamed.
///
/// Dropped before [`WholeDirectory::persist`], it leaves nothing behind.
#[derive(Debug)]
pub struct WholeDirectory {
    temporary: tempfile::TempDir,
    pending: Pending,
    place: PathBuf,
}

impl WholeDirectory {
    /// An empty directory on the same file system as `place`, whose parent must be there.
    pub fn new(place: &Path) -> Result<WholeDirectory> {
        let mut builder = tempfile::Builder::new();
        builder.prefix(".neurograft").suffix(".tmp");
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o777));
        let temporary = builder
            .tempdir_in(folder_of(place))
            .map_err(|e| Error::io(format!("cannot make a directory beside {}", place.display()), e))?;
        Ok(WholeDirectory { pending: Pending::new(temporary.path()), temporary, place: place.to_path_buf() })
    }

    /// Where to write meanwhile.
    pub fn path(&self) -> &Path {
        self.temporary.path()
    }

    /// Puts the directory in its place. What is there already is replaced: it is moved aside first, and back if that fails.
    pub fn persist(self) -> Result<()> {
        let failed = |e| Error::io(format!("cannot put {} in its place", self.place.display()), e);
        let folder = folder_of(&self.place);
        sync(self.path()).map_err(failed)?;
        let aside = tempfile::Builder::new().prefix(".neurograft").suffix(".old").tempdir_in(folder).map_err(failed)?;
        let old = aside.path().join("old");
        let replaces = self.place.exists();
        if replaces {
            std::fs::rename(&self.place, &old).map_err(failed)?;
        }
        if let Err(e) = std::fs::rename(self.temporary.path(), &self.place) {
            if replaces {
                std::fs::rename(&old, &self.place).map_err(failed)?;
            }
            return Err(failed(e));
        }
        // It has another name now: nothing is left to remove.
        let _ = self.temporary.keep();
        drop(self.pending);
        // Directories cannot be synced everywhere; where they can, the new name is on disk now.
        let _ = std::fs::File::open(folder).and_then(|f| f.sync_all());
        Ok(())
    }
}

/// Everything in a directory is on disk afterwards.
fn sync(dir: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() { sync(&path)? } else { std::fs::File::open(&path)?.sync_all()? }
    }
    Ok(())
}

/// The directory that a path lies in.
pub fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// What an ordinary new file gets (less the umask), where temporary files are private by default.
#[cfg(unix)]
fn permissions() -> Option<Permissions> {
    use std::os::unix::fs::PermissionsExt;
    Some(Permissions::from_mode(0o666))
}

#[cfg(not(unix))]
fn permissions() -> Option<Permissions> {
    None
}
