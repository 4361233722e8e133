//! The modes over any block cipher.

use cipher::consts::U16;
use cipher::typenum::Unsigned;
use cipher::{Array, Block, BlockCipherDecrypt, BlockCipherEncrypt, BlockSizeUser, KeyInit};

use super::hidden::Hidden;
use super::iv::Iv;
use super::tweaks::{self, Tweaks};
use super::twofish::Twofish;
use super::{CipherAlgorithm, CipherMode, CryptError, SECTOR};

/// Sectors whose tweaks are made with one call.
const TWEAKS: usize = 32;
/// Sectors that are encrypted with one call: the keys are made ready for wide vectors once for all of them.
const BATCH: usize = 8;
/// Sectors that are chained abreast.
const ABREAST: usize = 16;

/// Encrypts and decrypts whole sectors.
pub(super) trait Sectors: Send + Sync {
    fn encrypt(&self, first: u64, sectors: &mut [u8]);
    fn decrypt(&self, first: u64, sectors: &mut [u8]);
}

/// Encrypts one block.
pub(super) trait OneBlock: Send + Sync {
    fn encrypt(&self, block: &mut [u8]);
}

/// A block cipher of any kind.
pub(super) trait BlockCipher: BlockCipherEncrypt + BlockCipherDecrypt + KeyInit + Send + Sync {}
impl<C: BlockCipherEncrypt + BlockCipherDecrypt + KeyInit + Send + Sync> BlockCipher for C {}

struct Keyed<C>(C);

impl<C: BlockCipher> OneBlock for Keyed<C> {
    fn encrypt(&self, block: &mut [u8]) {
        if let Ok(block) = <&mut Block<C>>::try_from(block) {
            self.0.encrypt_block(block);
        }
    }
}

fn new<C: KeyInit>(key: &[u8]) -> Result<C, CryptError> {
    C::new_from_slice(key).map_err(|_| CryptError::KeyLength {
        length: key.len(),
        wanted: C::key_size(),
    })
}

macro_rules! dispatch {
    ($algorithm:expr, $make:ident, $($argument:expr),*) => {
        match $algorithm {
            CipherAlgorithm::Aes128 => $make::<aes::Aes128>($($argument),*),
            CipherAlgorithm::Aes192 => $make::<aes::Aes192>($($argument),*),
            CipherAlgorithm::Aes256 => $make::<aes::Aes256>($($argument),*),
            // Its key may have any length: that of the algorithm was checked.
            CipherAlgorithm::Serpent128 | CipherAlgorithm::Serpent192 | CipherAlgorithm::Serpent256 => {
                $make::<serpent::Serpent>($($argument),*)
            }
            CipherAlgorithm::Twofish128 | CipherAlgorithm::Twofish192 | CipherAlgorithm::Twofish256 => {
                $make::<Twofish>($($argument),*)
            }
            CipherAlgorithm::Cast5_128 => narrow::<cast5::Cast5>($($argument),*),
        }
    };
}

/// A cipher of one block.
pub(super) fn keyed(algorithm: CipherAlgorithm, key: &[u8]) -> Result<Box<dyn OneBlock>, CryptError> {
    fn make<C: BlockCipher + 'static>(key: &[u8]) -> Result<Box<dyn OneBlock>, CryptError> {
        Ok(Box::new(Keyed(new::<C>(key)?)))
    }
    use make as narrow;
    dispatch!(algorithm, make, key)
}

/// A cipher of sectors. The length of `key` was checked.
pub(super) fn sectors(
    algorithm: CipherAlgorithm,
    mode: CipherMode,
    iv: Option<Iv>,
    key: &[u8],
) -> Result<Hidden, CryptError> {
    fn narrow<C: BlockCipher + 'static>(mode: CipherMode, iv: Option<Iv>, key: &[u8]) -> Result<Hidden, CryptError> {
        match (mode, iv) {
            (CipherMode::Cbc, Some(iv)) => Ok(Hidden::new(Cbc::<C> { cipher: new(key)?, iv })),
            (CipherMode::Ecb, _) => Ok(Hidden::new(Ecb::<C>(new(key)?))),
            _ => Err(CryptError::Unsupported {
                what: "cipher mode",
                name: mode.name().to_owned(),
            }),
        }
    }
    fn make<C: BlockCipher + BlockSizeUser<BlockSize = U16> + 'static>(
        mode: CipherMode,
        iv: Option<Iv>,
        key: &[u8],
    ) -> Result<Hidden, CryptError> {
        match (mode, iv) {
            (CipherMode::Xts, Some(iv)) => {
                let (data, tweak) = key.split_at(key.len() / 2);
                Ok(Hidden::new(Xts::<C> {
                    data: new(data)?,
                    tweak: new(tweak)?,
                    iv,
                }))
            }
            (mode, iv) => narrow::<C>(mode, iv, key),
        }
    }
    dispatch!(algorithm, make, mode, iv, key)
}

/// The numbers of sectors from `first` on. The last number there is has one behind it that nobody uses, and that must not overflow.
fn numbers(first: u64) -> impl Iterator<Item = u64> {
    (0..).map(move |count| first.wrapping_add(count))
}

struct Ecb<C>(C);

impl<C: BlockCipher> Sectors for Ecb<C> {
    fn encrypt(&self, _first: u64, sectors: &mut [u8]) {
        let (blocks, _) = Array::slice_as_chunks_mut(sectors);
        self.0.encrypt_blocks(blocks);
    }

    fn decrypt(&self, _first: u64, sectors: &mut [u8]) {
        let (blocks, _) = Array::slice_as_chunks_mut(sectors);
        self.0.decrypt_blocks(blocks);
    }
}

struct Cbc<C> {
    cipher: C,
    iv: Iv,
}

impl<C: BlockCipher> Cbc<C> {
    fn vector(&self, sector: u64) -> Block<C> {
        let mut vector = Block::<C>::default();
        self.iv.fill(sector, &mut vector);
        vector
    }
}

impl<C: BlockCipher> Sectors for Cbc<C> {
    fn encrypt(&self, first: u64, sectors: &mut [u8]) {
        let width = C::BlockSize::USIZE;
        let mut numbers = numbers(first);
        // A sector's blocks wait for each other: those of several sectors go together.
        for group in sectors.as_chunks_mut::<SECTOR>().0.chunks_mut(ABREAST) {
            let mut vectors: [Block<C>; ABREAST] = Default::default();
            let used = vectors.get_mut(..group.len()).unwrap_or_default();
            for (vector, number) in used.iter_mut().zip(&mut numbers) {
                self.iv.fill(number, vector);
            }
            for at in (0..SECTOR).step_by(width) {
                for (vector, sector) in used.iter_mut().zip(&*group) {
                    for (to, from) in vector.iter_mut().zip(sector.iter().skip(at)) {
                        *to ^= from;
                    }
                }
                self.cipher.encrypt_blocks(used);
                for (vector, sector) in used.iter().zip(&mut *group) {
                    for (to, from) in sector.iter_mut().skip(at).zip(vector) {
                        *to = *from;
                    }
                }
            }
        }
    }

    fn decrypt(&self, first: u64, sectors: &mut [u8]) {
        let width = C::BlockSize::USIZE;
        for (number, sector) in numbers(first).zip(sectors.chunks_exact_mut(SECTOR)) {
            let mut before = [0; SECTOR];
            let (vector, rest) = before.split_at_mut(width);
            vector.copy_from_slice(&self.vector(number));
            for (to, from) in rest.iter_mut().zip(&*sector) {
                *to = *from;
            }
            let (blocks, _) = Array::<u8, C::BlockSize>::slice_as_chunks_mut(sector);
            self.cipher.decrypt_blocks(blocks);
            for (byte, before) in sector.iter_mut().zip(&before) {
                *byte ^= before;
            }
        }
    }
}

/// XTS (IEEE 1619) over sectors, which are whole blocks: no ciphertext is stolen.
struct Xts<C> {
    data: C,
    tweak: C,
    iv: Iv,
}

impl<C: BlockCipher + BlockSizeUser<BlockSize = U16>> Xts<C> {
    #[inline(always)]
    fn run(&self, first: u64, sectors: &mut [u8], work: impl Fn(&C, &mut [Block<C>])) {
        let mut numbers = numbers(first);
        let mut tweaks: [Tweaks; BATCH] = [[0; _]; BATCH];
        for group in sectors.as_chunks_mut::<SECTOR>().0.chunks_mut(TWEAKS) {
            let mut vectors = [[0u8; 16]; TWEAKS];
            let used = vectors.get_mut(..group.len()).unwrap_or_default();
            for (vector, number) in used.iter_mut().zip(&mut numbers) {
                self.iv.fill(number, vector);
            }
            self.tweak.encrypt_blocks(Array::cast_slice_from_core_mut(used));
            for (batch, vectors) in group.chunks_mut(BATCH).zip(used.chunks(BATCH)) {
                for ((vector, tweaks), sector) in vectors.iter().zip(&mut tweaks).zip(&mut *batch) {
                    tweaks::begin(*vector, tweaks, sector);
                }
                let (blocks, _) = batch.as_flattened_mut().as_chunks_mut::<16>();
                work(&self.data, Array::cast_slice_from_core_mut(blocks));
                for (tweaks, sector) in tweaks.iter().zip(batch) {
                    tweaks::finish(tweaks, sector);
                }
            }
        }
    }
}

impl<C: BlockCipher + BlockSizeUser<BlockSize = U16>> Sectors for Xts<C> {
    fn encrypt(&self, first: u64, sectors: &mut [u8]) {
        self.run(first, sectors, |cipher, blocks| cipher.encrypt_blocks(blocks));
    }

    fn decrypt(&self, first: u64, sectors: &mut [u8]) {
        self.run(first, sectors, |cipher, blocks| cipher.decrypt_blocks(blocks));
    }
}
