//! Files written whole or not at all.

use std::fs::Permissions;
use std::io::Write;
use std::path::Path;

use crate::error::{Error, Result};

/// Writes a file through a temporary one in the same directory: a reader sees the old file or the new one, whole.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let failed = |e| Error::io(format!("cannot write {}", path.display()), e);
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut builder = tempfile::Builder::new();
    builder.prefix(".neurograft").suffix(".tmp");
    if let Some(p) = permissions() {
        builder.permissions(p);
    }
    let mut file = builder.tempfile_in(folder).map_err(failed)?;
    file.write_all(bytes).map_err(failed)?;
    file.as_file().sync_all().map_err(failed)?;
    file.persist(path).map_err(|e| failed(e.error))?;
    Ok(())
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
