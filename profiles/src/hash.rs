/// A hash of bytes that is the same on every host and in every version (FNV-1a, 64 bits), as 16
/// hexadecimal digits. It tells apart what differs by accident, not what an attacker made alike.
pub fn stable_hash(bytes: impl IntoIterator<Item = u8>) -> String {
    let hash = bytes.into_iter().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{hash:016x}")
}

#[cfg(test)]
mod tests {
    /// From the test vectors that are published with the algorithm.
    #[test]
    fn it_is_fnv_1a() {
        let hash = |text: &str| super::stable_hash(text.bytes());
        assert_eq!(hash(""), "cbf29ce484222325");
        assert_eq!(hash("a"), "af63dc4c8601ec8c");
        assert_eq!(hash("foobar"), "85944171f73967e8");
    }
}
