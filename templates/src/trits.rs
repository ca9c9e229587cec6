//! Values of a byte of five codes, as two lookups by its low 6 bits: of the templates that read
//! T5.

/// Values of the low 6 bits of a byte: four codes, four where its top bits are both set, and
/// then the fifth, in the top bits.
pub static TABLES: [[u8; 64]; 3] = tables();

/// The same for `spread_unmasked`: the second and the third table say, by how much a byte is above 191,
/// which bits of the four codes and of the byte are to be changed, none where it is not.
pub static CHANGES: [[u8; 64]; 3] = changes();

/// The four digits of a ternary number, from the lowest, 2 bits each.
const fn digits(number: usize) -> u8 {
    (number % 3 + number / 3 % 3 * 4 + number / 9 % 3 * 16 + number / 27 % 3 * 64) as u8
}

const fn tables() -> [[u8; 64]; 3] {
    let mut out = [[0; 64]; 3];
    let mut low = 0;
    while low < 64 {
        out[0][low] = digits(low);
        // 17 numbers of four digits are left, with each of three codes.
        if low < 51 {
            out[1][low] = digits(64 + low % 17);
            out[2][low] = (low / 17 * 64) as u8;
        }
        low += 1;
    }
    out
}

const fn changes() -> [[u8; 64]; 3] {
    let mut out = [TABLES[0], [0; 64], [0; 64]];
    let mut low = 0;
    while low < 51 {
        out[1][low + 1] = TABLES[0][low] ^ TABLES[1][low];
        out[2][low + 1] = 0xc0 ^ TABLES[2][low];
        low += 1;
    }
    out
}

/// Place of a field: which of the two vectors that `spread` gives, and which of its four places.
pub const fn place(field: usize) -> (usize, usize) {
    if field < 4 { (0, field) } else { (1, 3) }
}
