//! [`LiveFile`]: a file that a filter goes by, and that may change while it runs.

use crate::error::{Error, ErrorKind, Result};
use crate::metrics;
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often the file is looked at.
const CHECK_EVERY: Duration = Duration::from_secs(1);

/// What a file of the configuration says: a list of addresses, of users, of keys. It is looked at again when it is
/// asked for, at most once a second; a new version that cannot be read or understood changes nothing but the log and
/// `millpond_file_reloads_total{filter,result}`.
pub struct LiveFile<T>(Arc<Inner<T>>);

struct Inner<T> {
    filter: &'static str,
    path: PathBuf,
    parse: Parse<T>,
    now: ArcSwap<T>,
    seen: Mutex<Seen>,
}

type Parse<T> = Box<dyn Fn(&str, &Path) -> Result<T, String> + Send + Sync>;

struct Seen {
    stamp: Option<Stamp>,
    at: Instant,
}

/// Device, inode, length, and time of the last change: another file, or the same one written again, has another one.
type Stamp = (u64, u64, u64, i64, i64);

impl<T: Send + Sync + 'static> LiveFile<T> {
    /// Read it for the first time, when a `filter` is made whose configuration names it by `key`. `parse` is given the
    /// text, and the path for what it has to say of it: the place, what was found and what was expected.
    ///
    /// # Errors
    /// The file cannot be read, or not be understood.
    pub fn read(
        filter: &'static str,
        key: &str,
        path: &Path,
        parse: impl Fn(&str, &Path) -> Result<T, String> + Send + Sync + 'static,
    ) -> Result<Self> {
        let wrong = |text: String| Error::new(ErrorKind::Filter, text);
        let unreadable =
            |error: io::Error| wrong(format!("a file that can be read as `{key}`: {}: {error}", path.display()));
        // Whatever the working folder is later.
        let path = std::path::absolute(path).map_err(unreadable)?;
        let file = File::open(&path).map_err(unreadable)?;
        let stamp = Some(stamp(&file.metadata().map_err(unreadable)?));
        let text = io::read_to_string(file).map_err(unreadable)?;
        let now = ArcSwap::from_pointee(parse(&text, &path).map_err(wrong)?);
        let seen = Mutex::new(Seen { stamp, at: Instant::now() });
        Ok(LiveFile(Arc::new(Inner { filter, path, parse: Box::new(parse), now, seen })))
    }

    /// What it says now. The request that finds it changed waits for it to be read, off the async threads.
    pub async fn current(&self) -> Arc<T> {
        if self.0.is_due() {
            let file = self.0.clone();
            if let Err(error) = tokio::task::spawn_blocking(move || file.read_again()).await {
                log::error!("{}: reading {}: {error}", self.0.filter, self.0.path.display());
            }
        }
        self.0.now.load_full()
    }
}

impl<T> Inner<T> {
    fn is_due(&self) -> bool {
        let mut seen = self.seen.lock();
        let due = seen.at.elapsed() >= CHECK_EVERY;
        if due {
            seen.at = Instant::now();
        }
        due
    }

    fn read_again(&self) {
        let stamp = fs::metadata(&self.path).ok().map(|metadata| stamp(&metadata));
        if std::mem::replace(&mut self.seen.lock().stamp, stamp) == stamp {
            return;
        }
        // If it has changed since, the next look will tell.
        let text = fs::read_to_string(&self.path).map_err(|error| format!("{}: {error}", self.path.display()));
        let read = text.and_then(|text| (self.parse)(&text, &self.path));
        metrics::file_reloaded(self.filter, read.is_ok());
        match read {
            Ok(new) => {
                log::info!("{}: {} has changed and is in use", self.filter, self.path.display());
                self.now.store(Arc::new(new));
            }
            Err(text) => log::error!("{}: {text}; what it said before stays in use", self.filter),
        }
    }
}

fn stamp(metadata: &Metadata) -> Stamp {
    (metadata.dev(), metadata.ino(), metadata.len(), metadata.ctime(), metadata.ctime_nsec())
}
