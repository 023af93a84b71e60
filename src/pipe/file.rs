//! [`TempFile`]: the bytes on disk. Every call blocks, so they are made on the blocking threads only.

use super::limits::FileSpace;
use bytes::{Bytes, BytesMut};
use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::OnceLock;

/// A temporary file without a name, readable by this user alone, created by the first write.
#[derive(Debug, Default)]
pub(super) struct TempFile {
    directory: PathBuf,
    file: OnceLock<File>,
}

impl TempFile {
    pub(super) fn new(directory: impl Into<PathBuf>) -> Self {
        TempFile { directory: directory.into(), file: OnceLock::new() }
    }

    /// Write `chunks` one behind the other, the first at `at`.
    pub(super) fn write_at(&self, chunks: &[Bytes], mut at: u64) -> io::Result<()> {
        let file = self.create()?;
        for chunk in chunks {
            file.write_all_at(chunk, at)?;
            at += chunk.len() as u64;
        }
        Ok(())
    }

    /// Read the `len` bytes at `at`, all of which were written.
    pub(super) fn read_at(&self, at: u64, len: usize) -> io::Result<BytesMut> {
        let file = self.file.get().ok_or(io::ErrorKind::NotFound)?;
        let mut bytes = BytesMut::zeroed(len);
        file.read_exact_at(&mut bytes, at)?;
        Ok(bytes)
    }

    /// Give the disk back everything, keeping the file for the next write.
    pub(super) fn truncate(&self) -> io::Result<()> {
        self.file.get().map_or(Ok(()), |file| file.set_len(0))
    }

    /// `tempfile` uses `O_TMPFILE`, or unlinks at once where a file system has no such thing.
    fn create(&self) -> io::Result<&File> {
        if self.file.get().is_none() {
            let file = tempfile::tempfile_in(&self.directory)?;
            file.set_permissions(Permissions::from_mode(0o600))?;
            // Writes never overlap, so nobody else has set it; if somebody had, theirs would be used.
            let _ = self.file.set(file);
        }
        self.file.get().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

/// Close the file and then give its space back. A large file that has no name is freed on disk by that, which takes a
/// while.
pub(super) fn close(file: TempFile, space: FileSpace) {
    if file.file.get().is_some() {
        blocking(move || {
            drop(file);
            drop(space);
        });
    }
}

/// Run on a blocking thread if there is a runtime, else here.
pub(super) fn blocking(job: impl FnOnce() + Send + 'static) {
    match tokio::runtime::Handle::try_current() {
        Ok(runtime) => drop(runtime.spawn_blocking(job)),
        Err(_) => job(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn the_file_has_no_name_and_is_private() {
        let directory = tempfile::tempdir().unwrap();
        let file = TempFile::new(directory.path());
        file.write_at(&[Bytes::from_static(b"ab"), Bytes::from_static(b"cd")], 3).unwrap();
        let metadata = file.file.get().unwrap().metadata().unwrap();
        assert_eq!((metadata.nlink(), metadata.mode() & 0o777), (0, 0o600));
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
        assert_eq!(file.read_at(3, 4).unwrap(), "abcd");
        file.truncate().unwrap();
        assert!(file.read_at(3, 4).is_err());
    }

    #[test]
    fn a_directory_that_is_not_there_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let file = TempFile::new(directory.path().join("missing"));
        assert!(file.write_at(&[Bytes::from_static(b"a")], 0).is_err());
        assert!(file.read_at(0, 1).is_err());
    }
}
