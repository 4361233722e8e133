//! Ciphers and derivations against what their standards publish. The numbers are facts of the standards; the tests are not theirs.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "tests may stop at the first surprise"
)]

use qcow2_codec::crypt::{
    CipherAlgorithm, CipherMode, CipherSpec, HashAlgorithm, IvGenerator, SECTOR, SectorCipher, pbkdf2,
};
use sha2::{Digest, Sha256};

fn hex(text: &str) -> Vec<u8> {
    let digit = |byte: u8| u8::try_from(char::from(byte).to_digit(16).unwrap()).unwrap();
    let (pairs, odd) = text.as_bytes().as_chunks::<2>();
    assert!(odd.is_empty());
    pairs
        .iter()
        .map(|[high, low]| digit(*high) << 4 | digit(*low))
        .collect()
}

fn cipher(algorithm: CipherAlgorithm, mode: CipherMode, iv: IvGenerator, key: &[u8]) -> SectorCipher {
    SectorCipher::new(&CipherSpec { algorithm, mode, iv }, key).unwrap()
}

fn xts(key: &str) -> SectorCipher {
    let algorithm = CipherAlgorithm::with_key("aes", key.len() / 4).unwrap();
    cipher(algorithm, CipherMode::Xts, IvGenerator::Plain64, &hex(key))
}

fn ecb(algorithm: CipherAlgorithm, key: &str) -> SectorCipher {
    cipher(algorithm, CipherMode::Ecb, IvGenerator::Plain64, &hex(key))
}

/// A vector that is shorter than a sector is how a sector begins: no mode here lets later bytes change earlier ones.
fn check(cipher: &SectorCipher, sector: u64, plain: &[u8], expected: &[u8]) {
    let mut whole = plain.to_vec();
    whole.resize(SECTOR, 0xa5);
    let mut bytes = whole.clone();
    cipher.encrypt(sector, &mut bytes).unwrap();
    assert_eq!(bytes[..expected.len()], *expected, "{:?}", cipher.spec());
    cipher.decrypt(sector, &mut bytes).unwrap();
    assert_eq!(bytes, whole, "{:?}", cipher.spec());
}

fn counting() -> Vec<u8> {
    (0..=255).chain(0..=255).collect()
}

// IEEE 1619, annex B: keys, and ciphertexts of vectors of 512 bytes.
const XTS_128: &str = "2718281828459045235360287471352631415926535897932384626433832795";
const XTS_256: &str = "27182818284590452353602874713526624977572470936999595749669676273141592653589793238462643383279502884197169399375105820974944592";
const VECTOR_1: &str = "917cf69ebd68b2ec9b9fe9a3eadda692cd43d2f59598ed858c02c2652fbf922e";
const VECTOR_2: &str = "c454185e6a16936e39334038acef838bfb186fff7480adc4289382ecd6d394f0";
const VECTOR_3: &str = "af85336b597afc1a900b2eb21ec949d292df4c047e0b21532186a5971a227a89";
const VECTOR_4: &str = "\
    27a7479befa1d476489f308cd4cfa6e2a96e4bbe3208ff25287dd3819616e89cc78cf7f5e543445f8333d8fa7f56000005279fa5d8b5e4ad40e736ddb4d35412\
    328063fd2aab53e5ea1e0a9f332500a5df9487d07a5c92cc512c8866c7e860ce93fdf166a24912b422976146ae20ce846bb7dc9ba94a767aaef20c0d61ad0265\
    5ea92dc4c4e41a8952c651d33174be51a10c421110e6d81588ede82103a252d8a750e8768defffed9122810aaeb99f9172af82b604dc4b8e51bcb08235a6f434\
    1332e4ca60482a4ba1a03b3e65008fc5da76b70bf1690db4eae29c5f1badd03c5ccf2a55d705ddcd86d449511ceb7ec30bf12b1fa35b913f9f747a8afd1b130e\
    94bff94effd01a91735ca1726acd0b197c4e5b03393697e126826fb6bbde8ecc1e08298516e2c9ed03ff3c1b7860f6de76d4cecd94c8119855ef5297ca67e9f3\
    e7ff72b1e99785ca0a7e7720c5b36dc6d72cac9574c8cbbc2f801e23e56fd344b07f22154beba0f08ce8891e643ed995c94d9a69c9f1b5f499027a78572aeebd\
    74d20cc39881c213ee770b1010e4bea718846977ae119f7a023ab58cca0ad752afe656bb3c17256a9f6e9bf19fdd5a38fc82bbe872c5539edb609ef4f79c203e\
    bb140f2e583cb2ad15b4aa5b655016a8449277dbd477ef2c8d6c017db738b18deb4a427d1923ce3ff262735779a418f20a282df920147beabe421ee5319d0568";
const VECTOR_5: &str = "\
    264d3ca8512194fec312c8c9891f279fefdd608d0c027b60483a3fa811d65ee59d52d9e40ec5672d81532b38b6b089ce951f0f9c35590b8b978d175213f329bb\
    1c2fd30f2f7f30492a61a532a79f51d36f5e31a7c9a12c286082ff7d2394d18f783e1a8e72c722caaaa52d8f065657d2631fd25bfd8e5baad6e527d763517501\
    c68c5edc3cdd55435c532d7125c8614deed9adaa3acade5888b87bef641c4c994c8091b5bcd387f3963fb5bc37aa922fbfe3df4e5b915e6eb514717bdd2a7407\
    9a5073f5c4bfd46adf7d282e7a393a52579d11a028da4d9cd9c77124f9648ee383b1ac763930e7162a8d37f350b2f74b8472cf09902063c6b32e8c2d9290cefb\
    d7346d1c779a0df50edcde4531da07b099c638e83a755944df2aef1aa31752fd323dcb710fb4bfbb9d22b925bc3577e1b8949e729a90bbafeacf7f7879e7b114\
    7e28ba0bae940db795a61b15ecf4df8db07b824bb062802cc98a9545bb2aaeed77cb3fc6db15dcd7d80d7d5bc406c4970a3478ada8899b329198eb61c193fb62\
    75aa8ca340344a75a862aebe92eee1ce032fd950b47d7704a3876923b4ad62844bf4a09c4dbe8b4397184b7471360c9564880aedddb9baa4af2e75394b08cd32\
    ff479c57a07d3eab5d54de5f9738b8d27f27a9f0ab11799d7b7ffefb2704c95c6ad12c39f1e867a4b7b1d7818a4b753dfd2a89ccb45e001a03a867b187f225dd";
const VECTOR_10: &str = "\
    1c3b3a102f770386e4836c99e370cf9bea00803f5e482357a4ae12d414a3e63b5d31e276f8fe4a8d66b317f9ac683f44680a86ac35adfc3345befecb4bb188fd\
    5776926c49a3095eb108fd1098baec70aaa66999a72a82f27d848b21d4a741b0c5cd4d5fff9dac89aeba122961d03a757123e9870f8acf1000020887891429ca\
    2a3e7a7d7df7b10355165c8b9a6d0a7de8b062c4500dc4cd120c0f7418dae3d0b5781c34803fa75421c790dfe1de1834f280d7667b327f6c8cd7557e12ac3a0f\
    93ec05c52e0493ef31a12d3d9260f79a289d6a379bc70c50841473d1a8cc81ec583e9645e07b8d9670655ba5bbcfecc6dc3966380ad8fecb17b6ba02469a020a\
    84e18e8f84252070c13e9f1f289be54fbc481457778f616015e1327a02b140f1505eb309326d68378f8374595c849d84f4c333ec4423885143cb47bd71c5edae\
    9be69a2ffeceb1bec9de244fbe15992b11b77c040f12bd8f6a975a44a0f90c29a9abc3d4d893927284c58754cce294529f8614dcd2aba991925fedc4ae74ffac\
    6e333b93eb4aff0479da9a410e4450e0dd7ae4c6e2910900575da401fc07059f645e8b7e9bfdef33943054ff84011493c27b3429eaedb4ed5376441a77ed4385\
    1ad77f16f541dfd269d50d6a5f14fb0aab1cbb4c1550be97f7ab4066193c4caa773dad38014bd2092fa755c824bb5e54c4f36ffda9fcea70b9c6e693e148c151";
const VECTOR_14: &str = "\
    64497e5a831e4a932c09be3e5393376daa599548b816031d224bbf50a818ed2350eae7e96087c8a0db51ad290bd00c1ac1620857635bf246c176ab463be30b80\
    8da548081ac847b158e1264be25bb0910bbc92647108089415d45fab1b3d2604e8a8eff1ae4020cfa39936b66827b23f371b92200be90251e6d73c5f86de5fd4\
    a950781933d79a28272b782a2ec313efdfcc0628f43d744c2dc2ff3dcb66999b50c7ca895b0c64791eeaa5f29499fb1c026f84ce5b5c72ba1083cddb5ce45434\
    631665c333b60b11593fb253c5179a2c8db813782a004856a1653011e93fb6d876c18366dd8683f53412c0c180f9c848592d593f8609ca736317d356e13e2bff\
    3a9f59cd9aeb19cd482593d8c46128bb32423b37a9adfb482b99453fbe25a41bf6feb4aa0bef5ed24bf73c762978025482c13115e4015aac992e5613a3b5c2f6\
    85b84795cb6e9b2656d8c88157e52c42f978d8634c43d06fea928f2822e465aa6576e9bf419384506cc3ce3c54ac1a6f67dc66f3b30191e698380bc999b05abc\
    e19dc0c6dcc2dd001ec535ba18deb2df1a101023108318c75dc98611a09dc48a0acdec676fabdf222f07e026f059b672b56e5cbc8e1d21bbd867dd9272120546\
    81d70ea737134cdfce93b6f82ae22423274e58a0821cc5502e2d0ab4585e94de6975be5e0b4efce51cd3e70c25a1fbbbd609d273ad5b0d59631c531f6a0a57b9";

#[test]
fn xts_aes_128_of_ieee_1619() {
    let second = |first: &str, second: &str| format!("{}{}", first.repeat(16), second.repeat(16));
    let sector = 0x33_3333_3333;
    let expected = [
        (second("00", "00"), 0, 0x00, VECTOR_1),
        (second("11", "22"), sector, 0x44, VECTOR_2),
        (
            format!("fffefdfcfbfaf9f8f7f6f5f4f3f2f1f0{}", "22".repeat(16)),
            sector,
            0x44,
            VECTOR_3,
        ),
    ];
    for (key, sector, byte, expected) in expected {
        check(&xts(&key), sector, &[byte; 32], &hex(expected));
    }
    check(&xts(XTS_128), 0, &counting(), &hex(VECTOR_4));
    check(&xts(XTS_128), 1, &hex(VECTOR_4), &hex(VECTOR_5));
}

#[test]
fn xts_aes_256_of_ieee_1619() {
    check(&xts(XTS_256), 0xff, &counting(), &hex(VECTOR_10));
    check(&xts(XTS_256), 0xff_ffff_ffff, &counting(), &hex(VECTOR_14));
}

/// Each sector of a long run is what it is alone, on both sides of every batch; plain counts in 32 bits.
#[test]
fn a_run_of_sectors_is_its_sectors() {
    for (iv, first) in [
        (IvGenerator::Plain64, 5),
        (IvGenerator::Plain64, 0xffff_fff0),
        (IvGenerator::Plain, 0xffff_fff0),
    ] {
        let cipher = cipher(CipherAlgorithm::Aes256, CipherMode::Xts, iv, &hex(XTS_256));
        let reference = xts(XTS_256);
        for count in [1, 2, 3, 4, 5, 7, 8, 9, 127, 128, 129, 300] {
            let mut run = counting().repeat(count);
            cipher.encrypt(first, &mut run).unwrap();
            for (number, sector) in (first..).zip(run.as_chunks::<SECTOR>().0) {
                let number = if iv == IvGenerator::Plain {
                    number & 0xffff_ffff
                } else {
                    number
                };
                let mut alone = counting();
                reference.encrypt(number, &mut alone).unwrap();
                assert!(alone == *sector, "sector {number} of {count}");
            }
            cipher.decrypt(first, &mut run).unwrap();
            assert!(run == counting().repeat(count));
        }
    }
}

// NIST SP 800-38A, annex F: four blocks under three keys, F.1 without and F.2 with chaining.
const NIST_PLAIN: &str = "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e5130c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17ad2b417be66c3710";
const NIST_KEYS: [&str; 3] = [
    "2b7e151628aed2a6abf7158809cf4f3c",
    "8e73b0f7da0e6452c810f32b809079e562f8ead2522c6b7b",
    "603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4",
];
const NIST_ECB: [&str; 3] = [
    "3ad77bb40d7a3660a89ecaf32466ef97f5d3d58503b9699de785895a96fdbaaf43b1cd7f598ece23881b00e3ed0306887b0c785e27e8ad3f8223207104725dd4",
    "bd334f1d6e45f25ff712a214571fa5cc974104846d0ad3ad7734ecb3ecee4eefef7afd2270e2e60adce0ba2face6444e9a4b41ba738d6c72fb16691603c18e0e",
    "f3eed1bdb5d2a03c064b5a7e3db181f8591ccb10d410ed26dc5ba74a31362870b6ed21b99ca6f4f9f153e7b1beafed1d23304b7a39f9f3ff067d8d8f9e24ecc7",
];
const NIST_CBC: [&str; 3] = [
    "7649abac8119b246cee98e9b12e9197d5086cb9b507219ee95db113a917678b273bed6b8e3c1743b7116e69e222295163ff1caa1681fac09120eca307586e1a7",
    "4f021db243bc633d7178183a9fa071e8b4d9ada9ad7dedf4e5e738763f69145a571b242012fb7ae07fa9baac3df102e008b0e27988598881d920a9e64f5615cd",
    "f58c4c04d6e5f1ba779eabfb5f7bfbd69cfc4e967edb808d679f777bc6702c7d39f23369a9d9bacfa530e26304231461b2eb05e2c39be9fcda6c19078c6a9d1b",
];

#[test]
fn aes_of_nist_sp_800_38a() {
    let algorithms = [
        CipherAlgorithm::Aes128,
        CipherAlgorithm::Aes192,
        CipherAlgorithm::Aes256,
    ];
    // The vectors' IV is 00 to 0f; a sector's is its number, so what differs goes into the first block.
    let sector = 0x0123_4567_u64;
    let mut chained = hex(NIST_PLAIN);
    for ((byte, theirs), ours) in chained.iter_mut().zip(0..16u8).zip(u128::from(sector).to_le_bytes()) {
        *byte ^= theirs ^ ours;
    }
    for (number, algorithm) in algorithms.into_iter().enumerate() {
        let key = NIST_KEYS[number];
        check(&ecb(algorithm, key), 7, &hex(NIST_PLAIN), &hex(NIST_ECB[number]));
        let cbc = cipher(algorithm, CipherMode::Cbc, IvGenerator::Plain64, &hex(key));
        check(&cbc, sector, &chained, &hex(NIST_CBC[number]));
    }
}

/// Serpent and Twofish: what NESSIE and Twofish's paper publish; CAST5: RFC 2144, B.1.
#[test]
fn serpent_twofish_and_cast5_as_published() {
    let zeros = [0; 16];
    let vectors = [
        (
            CipherAlgorithm::Serpent192,
            format!("80{}", "00".repeat(23)),
            "9e274ead9b737bb21efcfca548602689",
        ),
        (
            CipherAlgorithm::Serpent256,
            format!("80{}", "00".repeat(31)),
            "a223aa1288463c0e2be38ebd825616c0",
        ),
        (
            CipherAlgorithm::Twofish128,
            "00".repeat(16),
            "9f589f5cf6122c32b6bfec2f2ae8c35a",
        ),
        (
            CipherAlgorithm::Twofish192,
            "0123456789abcdeffedcba98765432100011223344556677".into(),
            "cfd1d2e5a9be9cdf501f13b892bd2248",
        ),
        (
            CipherAlgorithm::Twofish256,
            "0123456789abcdeffedcba987654321000112233445566778899aabbccddeeff".into(),
            "37527be0052334b89f0cfccae87cfa20",
        ),
    ];
    for (algorithm, key, expected) in vectors {
        check(&ecb(algorithm, &key), 0, &zeros, &hex(expected));
    }
    let cast5 = ecb(CipherAlgorithm::Cast5_128, "0123456712345678234567893456789a");
    check(&cast5, 0, &hex("0123456789abcdef"), &hex("238b4fe5847e44b2"));
}

/// ESSIV put together from parts that the tests above prove: the sector's number under the hash of the key, then CBC by hand.
#[test]
fn essiv_is_cbc_under_an_encrypted_sector_number() {
    let key = hex(NIST_KEYS[0]);
    let essiv = IvGenerator::Essiv(HashAlgorithm::Sha256);
    let ours = cipher(CipherAlgorithm::Aes128, CipherMode::Cbc, essiv, &key);
    let ecb = |algorithm, key: &[u8]| cipher(algorithm, CipherMode::Ecb, IvGenerator::Plain64, key);
    let salted = ecb(CipherAlgorithm::Aes256, &Sha256::digest(&key));
    let plain = ecb(CipherAlgorithm::Aes128, &key);
    // Ciphers here take whole sectors: the rest of one is of no interest.
    let one_block = |cipher: &SectorCipher, block: u128| {
        let mut sector = [0; SECTOR];
        sector[..16].copy_from_slice(&block.to_le_bytes());
        cipher.encrypt(0, &mut sector).unwrap();
        u128::from_le_bytes(sector[..16].try_into().unwrap())
    };
    for sector in [0, 1, 0xffff_ffff, 0x1_0000_0000, u64::MAX] {
        let mut before = one_block(&salted, sector.into());
        let mut expected = Vec::new();
        for block in counting().as_chunks::<16>().0 {
            before = one_block(&plain, before ^ u128::from_le_bytes(*block));
            expected.extend(before.to_le_bytes());
        }
        check(&ours, sector, &counting(), &expected);
    }
}

/// SHA-1: RFC 6070 (but for its 16,777,216 iterations). SHA-256: RFC 7914, section 11, and the passwords of RFC 6070, as all implementations have them;
/// SHA-512 likewise. RIPEMD-160: the self test of TrueCrypt.
#[test]
fn pbkdf2_as_published() {
    const LONG: &[u8] = b"passwordPASSWORDpassword";
    const LONG_SALT: &[u8] = b"saltSALTsaltSALTsaltSALTsaltSALTsalt";
    use HashAlgorithm::{Ripemd160, Sha1, Sha256, Sha512};
    let vectors: [(_, &[u8], &[u8], u32, &str); 13] = [
        (
            Sha1,
            b"password",
            b"salt",
            1,
            "0c60c80f961f0e71f3a9b524af6012062fe037a6",
        ),
        (
            Sha1,
            b"password",
            b"salt",
            2,
            "ea6c014dc72d6f8ccd1ed92ace1d41f0d8de8957",
        ),
        (
            Sha1,
            b"password",
            b"salt",
            4096,
            "4b007901b765489abead49d926f721d065a429c1",
        ),
        (
            Sha1,
            LONG,
            LONG_SALT,
            4096,
            "3d2eec4fe41c849b80c8d83662c0e44a8b291a964cf2f07038",
        ),
        (Sha1, b"pass\0word", b"sa\0lt", 4096, "56fa6aa75548099dcc37d7f03425e0c3"),
        (
            Sha256,
            b"password",
            b"salt",
            1,
            "120fb6cffcf8b32c43e7225256c4f837a86548c92ccc35480805987cb70be17b",
        ),
        (
            Sha256,
            b"password",
            b"salt",
            2,
            "ae4d0c95af6b46d32d0adff928f06dd02a303f8ef3c251dfd6e2d85a95474c43",
        ),
        (
            Sha256,
            b"password",
            b"salt",
            4096,
            "c5e478d59288c841aa530db6845c4c8d962893a001ce4e11a4963873aa98134a",
        ),
        (
            Sha256,
            b"passwd",
            b"salt",
            1,
            "55ac046e56e3089fec1691c22544b605f94185216dde0465e68b9d57c20dacbc49ca9cccf179b645991664b39d77ef317c71b845b1e30bd509112041d3a19783",
        ),
        (
            Sha256,
            b"Password",
            b"NaCl",
            80000,
            "4ddcd8f60b98be21830cee5ef22701f9641a4418d04c0414aeff08876b34ab56a1d425a1225833549adb841b51c9b3176a272bdebba1d078478f62b397f33c8d",
        ),
        (
            Sha512,
            b"password",
            b"salt",
            1,
            "867f70cf1ade02cff3752599a3a53dc4af34c7a669815ae5d513554e1c8cf252c02d470a285a0501bad999bfe943c08f050235d7d68b1da55e63f73b60a57fce",
        ),
        (
            Sha512,
            b"password",
            b"salt",
            4096,
            "d197b1b33db0143e018b12f3d1d1479e6cdebdcc97c5c0f87f6902e072f457b5143f30602641b3d55cd335988cb36b84376060ecd532e039b742a239434af2d5",
        ),
        (
            Ripemd160,
            b"password",
            &[0x12, 0x34, 0x56, 0x78],
            5,
            "7a3d7c03e7266bf83d78fb29d2641f56eaf0e5f5ccc43a31a88470bfbd6f8e78245ac00af6faf0f6e900475f73cee143",
        ),
    ];
    for (hash, password, salt, iterations, expected) in vectors {
        let expected = hex(expected);
        let mut out = vec![0; expected.len()];
        pbkdf2(hash, password, salt, iterations, &mut out, &|| true).unwrap();
        assert_eq!(out, expected, "{} with {iterations}", hash.name());
    }
}
