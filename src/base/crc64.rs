//! CRC-64/XZ, which OSS calls `x-oss-hash-crc64ecma`: running sums, and the sum of two joined pieces.
//!
//! The sum itself comes from `crc64fast` (carry-less multiplication where the machine has it); joining is ours.
//! Parameters: OSS reference §9.

/// A running sum.
#[derive(Clone, Default)]
pub struct Crc64(crc64fast::Digest);

impl Crc64 {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn update(&mut self, bytes: &[u8]) {
        self.0.write(bytes);
    }

    /// The sum of all bytes so far; of none it is 0.
    pub fn value(&self) -> u64 {
        self.0.sum64()
    }
}

impl std::fmt::Debug for Crc64 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Crc64({:016x})", self.value())
    }
}

/// The sum of `bytes`.
pub fn checksum(bytes: &[u8]) -> u64 {
    let mut crc = Crc64::new();
    crc.update(bytes);
    crc.value()
}

/// The reflected polynomial.
const POLY: u64 = 0xc96c_5795_d787_0f42;

type Matrix = [u64; 64];

const fn times(matrix: &Matrix, mut vector: u64) -> u64 {
    let mut sum = 0;
    while vector != 0 {
        sum ^= matrix[vector.trailing_zeros() as usize];
        vector &= vector - 1;
    }
    sum
}

const fn square(matrix: &Matrix) -> Matrix {
    let mut out = [0; 64];
    let mut i = 0;
    while i < 64 {
        out[i] = times(matrix, matrix[i]);
        i += 1;
    }
    out
}

/// `ZEROS[i]` advances a sum over 2^i zero bytes.
static ZEROS: [Matrix; 64] = zero_operators();

const fn zero_operators() -> [Matrix; 64] {
    // The operator for one zero bit, squared three times: one zero byte.
    let mut bit: Matrix = [0; 64];
    bit[0] = POLY;
    let mut i = 1;
    while i < 64 {
        bit[i] = 1 << (i - 1);
        i += 1;
    }
    let mut operators = [[0; 64]; 64];
    operators[0] = square(&square(&square(&bit)));
    let mut power = 1;
    while power < 64 {
        operators[power] = square(&operators[power - 1]);
        power += 1;
    }
    operators
}

/// The sum of A followed by B, from the sum of A, the sum of B and the length of B in bytes.
pub fn combine(crc_a: u64, crc_b: u64, len_b: u64) -> u64 {
    let mut crc = crc_a;
    let mut rest = len_b;
    while rest != 0 {
        crc = times(&ZEROS[rest.trailing_zeros() as usize], crc);
        rest &= rest - 1;
    }
    crc ^ crc_b
}

/// The sum of `len` zero bytes.
pub fn zeros(len: u64) -> u64 {
    // A message of zeros leaves only the inverted start value to be advanced and inverted back.
    combine(u64::MAX, u64::MAX, len)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;

    fn number(value: &Value) -> u64 {
        value.as_str().expect("a decimal string").parse().expect("a u64")
    }

    fn generate(generator: &Value) -> Vec<u8> {
        let count = || generator["count"].as_u64().expect("count");
        match generator["kind"].as_str().expect("kind") {
            "ascii" | "utf8" => generator["text"].as_str().expect("text").as_bytes().to_vec(),
            "hex" => {
                let hex = generator["hex"].as_str().expect("hex");
                (0..hex.len() / 2).map(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).unwrap()).collect()
            }
            "repeat" => vec![generator["byte"].as_u64().expect("byte") as u8; count() as usize],
            "counter" => (0..count()).map(|i| (i % 256) as u8).collect(),
            "lcg" => {
                let mut x = generator["seed"].as_u64().expect("seed");
                let mut step = || {
                    x = (x * 1_103_515_245 + 12_345) % (1 << 31);
                    ((x >> 16) & 255) as u8
                };
                (0..count()).map(|_| step()).collect()
            }
            kind => panic!("generator {kind}"),
        }
    }

    fn vectors() -> Value {
        serde_json::from_str(include_str!("../../tests/data/crc64-vectors.json")).expect("JSON")
    }

    #[test]
    fn all_published_sums_hold() {
        for vector in vectors()["single"].as_array().expect("single") {
            let bytes = generate(&vector["generator"]);
            assert_eq!(bytes.len() as u64, vector["length"].as_u64().expect("length"));
            assert_eq!(checksum(&bytes), number(&vector["crc64"]), "{vector}");
        }
    }

    #[test]
    fn all_published_running_sums_hold() {
        for vector in vectors()["incremental"].as_array().expect("incremental") {
            let mut crc = Crc64::new();
            let chunks = vector["chunks"].as_array().expect("chunks");
            let sums = vector["after_each"].as_array().expect("after_each");
            assert_eq!(chunks.len(), sums.len());
            for (chunk, sum) in chunks.iter().zip(sums) {
                crc.update(&generate(chunk));
                assert_eq!(crc.value(), number(sum));
            }
        }
    }

    #[test]
    fn all_published_joins_hold() {
        let vectors = vectors();
        for vector in vectors["combine"].as_array().expect("combine") {
            let len = vector["len_b"].as_u64().expect("len_b");
            let joined = combine(number(&vector["crc_a"]), number(&vector["crc_b"]), len);
            assert_eq!(joined, number(&vector["crc_ab"]), "{vector}");
        }
        for vector in vectors["multipart"].as_array().expect("multipart") {
            let mut whole = 0;
            for part in vector["parts"].as_array().expect("parts") {
                let bytes = generate(&part["generator"]);
                assert_eq!(checksum(&bytes), number(&part["crc64"]));
                whole = combine(whole, checksum(&bytes), bytes.len() as u64);
            }
            assert_eq!(whole, number(&vector["object_crc64"]));
        }
    }

    proptest! {
        #[test]
        fn joined_sums_equal_the_sum_of_the_whole(a in proptest::collection::vec(any::<u8>(), 0..5000), b in proptest::collection::vec(any::<u8>(), 0..5000)) {
            let whole: Vec<u8> = a.iter().chain(&b).copied().collect();
            prop_assert_eq!(combine(checksum(&a), checksum(&b), b.len() as u64), checksum(&whole));
        }

        #[test]
        fn zeros_are_summed_without_being_there(len in 0usize..100_000) {
            prop_assert_eq!(zeros(len as u64), checksum(&vec![0; len]));
        }
    }
}
