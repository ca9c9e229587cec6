//! Word to systemd: that the server is ready, and that it is about to end.

/// Sends a line such as `READY=1` to the socket that systemd names, if it names one.
#[cfg(target_os = "linux")]
pub fn notify(line: &str) {
    use std::os::linux::net::SocketAddrExt as _;
    use std::os::unix::net::{SocketAddr, UnixDatagram};

    let Ok(path) = std::env::var("NOTIFY_SOCKET") else { return };
    let address = match path.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(&path),
    };
    // Who does not listen is not told.
    if let (Ok(address), Ok(socket)) = (address, UnixDatagram::unbound()) {
        drop(socket.send_to_addr(line.as_bytes(), &address));
    }
}

/// There is no systemd.
#[cfg(not(target_os = "linux"))]
pub fn notify(_: &str) {}
