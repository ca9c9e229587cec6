//! The address of the server: a port or a Unix socket.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::path::{Path, PathBuf};

use bitnet_runtime::error::{Error, Result};
use tokio::net::TcpStream;

#[cfg(unix)]
use std::os::unix::net::UnixListener;

/// Bytes that the system keeps of an answer that its reader does not read: few, so that it is
/// noticed.
#[cfg(unix)]
const SEND_BUFFER: usize = 128 << 10;

/// A bound address.
#[derive(Debug)]
pub enum Listener {
    Tcp(TcpListener, SocketAddr),
    #[cfg(unix)]
    Unix(UnixListener, PathBuf),
}

impl Listener {
    /// Binds `unix:PATH`, or an address and a port; port 0 takes a free one.
    ///
    /// # Errors
    /// [`Error::Io`] naming the address when it is taken or is none.
    pub fn bind(host: &str, port: u16) -> Result<Self> {
        #[cfg(unix)]
        if let Some(path) = host.strip_prefix("unix:") {
            return Self::bind_unix(Path::new(path));
        }
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let bound = (bare, port).to_socket_addrs().and_then(|addresses| {
            let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
            for address in addresses {
                match TcpListener::bind(address) {
                    Ok(listener) => return Ok(listener),
                    Err(error) => last = error,
                }
            }
            Err(last)
        });
        let fail = |error| Error::io(Path::new(&format!("{host}:{port}")), "listen", error);
        let listener = bound.map_err(fail)?;
        listener.set_nonblocking(true).map_err(fail)?;
        let address = listener.local_addr().map_err(fail)?;
        Ok(Self::Tcp(listener, address))
    }

    /// A socket for this user alone; one that nobody listens at any more gives way.
    #[cfg(unix)]
    fn bind_unix(path: &Path) -> Result<Self> {
        use std::os::unix::fs::FileTypeExt as _;
        use std::os::unix::net::UnixStream;

        use rustix::fs::Mode;

        let fail = |error| Error::io(path, "listen", error);
        let is_socket =
            std::fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket());
        if is_socket && UnixStream::connect(path).is_err() {
            std::fs::remove_file(path).map_err(fail)?;
        }
        // No other thread makes files yet.
        let others = rustix::process::umask(Mode::RWXG | Mode::RWXO | Mode::XUSR);
        let bound = UnixListener::bind(path);
        rustix::process::umask(others);
        let listener = bound.map_err(fail)?;
        listener.set_nonblocking(true).map_err(fail)?;
        Ok(Self::Unix(listener, path.to_path_buf()))
    }

    /// True if only programs of this machine reach it, by an address that a page of any site can name.
    pub fn is_loopback(&self) -> bool {
        match self {
            Self::Tcp(_, address) => address.ip().is_loopback(),
            #[cfg(unix)]
            Self::Unix(..) => false,
        }
    }

    /// True if other machines may reach it.
    pub fn is_open(&self) -> bool {
        match self {
            Self::Tcp(_, address) => !address.ip().is_loopback(),
            #[cfg(unix)]
            Self::Unix(..) => false,
        }
    }
}

/// Formats the address as a client is given it.
impl fmt::Display for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(_, address) => write!(f, "http://{address}"),
            #[cfg(unix)]
            Self::Unix(_, path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Removes the file of a Unix socket when the server ends.
#[derive(Debug)]
pub struct SocketFile(Option<PathBuf>);

impl SocketFile {
    /// That of a listener, if it has one.
    pub fn of(listener: &Listener) -> Self {
        match listener {
            Listener::Tcp(..) => Self(None),
            #[cfg(unix)]
            Listener::Unix(_, path) => Self(Some(path.clone())),
        }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            // It may have gone.
            drop(std::fs::remove_file(path));
        }
    }
}

/// Sets a connection up: small answers go at once, and few bytes wait for one who does not read.
pub fn prepare(stream: &TcpStream) {
    // A connection without these settings serves as well.
    drop(stream.set_nodelay(true));
    #[cfg(unix)]
    let _ = rustix::net::sockopt::set_socket_send_buffer_size(stream, SEND_BUFFER);
}

/// The same for a connection by a Unix socket.
#[cfg(unix)]
pub fn prepare_unix(stream: &tokio::net::UnixStream) {
    let _ = rustix::net::sockopt::set_socket_send_buffer_size(stream, SEND_BUFFER);
}

/// Asks for as many open files as this process may have.
pub fn raise_file_limit() {
    #[cfg(unix)]
    {
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
        let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
        // With fewer files there are fewer connections.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    }
}
