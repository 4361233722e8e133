//! Damage: fields get values that hurt, so that what follows them still finds something; now and then bytes, splices and cuts.

use crate::places::{Kind, Place, number, places};
use crate::random::Random;

/// Damages an image in one to four places.
pub fn mutate(bytes: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..1 + random.below(4) {
        match random.below(20) {
            0 => flip(bytes, random),
            1 => splice(bytes, random),
            2 => cut(bytes, random),
            _ => field(bytes, random),
        }
    }
}

fn flip(bytes: &mut [u8], random: &mut Random) {
    if !bytes.is_empty() {
        let at = random.index(bytes.len());
        bytes[at] ^= 1 << random.below(8);
    }
}

/// Some of the file over another part of it, whole sectors.
fn splice(bytes: &mut [u8], random: &mut Random) {
    let sectors = bytes.len() / 512;
    if sectors > 1 {
        let (from, to) = (random.index(sectors) * 512, random.index(sectors) * 512);
        bytes.copy_within(from..from + 512, to);
    }
}

fn cut(bytes: &mut Vec<u8>, random: &mut Random) {
    let length = random.index(bytes.len() + 1);
    let length = if random.one_in(2) { length & !511 } else { length };
    if random.one_in(4) {
        bytes.resize((bytes.len() + length).min(1 << 20), 0);
    } else {
        bytes.truncate(length.max(bytes.len() / 2));
    }
}

fn field(bytes: &mut [u8], random: &mut Random) {
    let all = places(bytes);
    if all.is_empty() {
        return flip(bytes, random);
    }
    let place = all[random.index(all.len())];
    let old = number(bytes, place.at, place.width);
    let value = match place.kind {
        Kind::Bytes => random.number(),
        Kind::Number => plain(old, random),
        Kind::Offset if random.one_in(3) => plain(old, random),
        Kind::Offset => offset(bytes, &all, random),
        Kind::Entry => entry(bytes, &all, old, random),
    };
    let wire = value.to_be_bytes();
    let end = place.at + place.width;
    bytes[place.at..end].copy_from_slice(&wire[8 - place.width..]);
}

fn plain(old: u64, random: &mut Random) -> u64 {
    match random.below(9) {
        0 => 0,
        1 => u64::MAX,
        2 => old.wrapping_add(1),
        3 => old.wrapping_sub(1),
        4 => old << 1,
        5 => 1 << random.below(64),
        6 => (1 << random.below(64)) - 1,
        7 => random.below(256),
        _ => old ^ 1 << random.below(64),
    }
}

/// A place in the file where something lies, or just beyond it.
fn offset(bytes: &[u8], all: &[Place], random: &mut Random) -> u64 {
    let bits = number(bytes, 20, 4).clamp(9, 21);
    let cluster = 1u64 << bits;
    let clusters = bytes.len() as u64 / cluster;
    match random.below(6) {
        0 => all[random.index(all.len())].at as u64 & !(cluster - 1),
        1 => (clusters + random.below(4)) * cluster,
        2 => random.below(clusters + 1) * cluster + 512 * random.below(cluster / 512),
        _ => random.below(clusters + 1) * cluster,
    }
}

fn entry(bytes: &[u8], all: &[Place], old: u64, random: &mut Random) -> u64 {
    const FLAGS: u64 = 3 << 62 | 1;
    match random.below(8) {
        0 => old ^ 1 << 63,
        1 => old ^ 1 << 62,
        2 => old ^ 1,
        3 => plain(old, random),
        // Another entry's value: two names of one thing.
        4 => {
            let others: Vec<&Place> = all.iter().filter(|place| place.kind == Kind::Entry).collect();
            let other = others[random.index(others.len())];
            number(bytes, other.at, other.width)
        }
        _ => offset(bytes, all, random) | old & FLAGS,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seeds;

    #[test]
    fn the_places_of_every_structure_are_found() {
        let bytes = seeds::image(0);
        let all = places(&bytes);
        for (at, what) in [
            (40, "the header's L1"),
            (number(&bytes, 40, 8) as usize, "L1"),
            (number(&bytes, 64, 8) as usize, "snapshots"),
        ] {
            assert!(all.iter().any(|place| place.at == at), "{what}");
        }
        let l2 = number(&bytes, number(&bytes, 40, 8) as usize, 8) & 0x00ff_ffff_ffff_fe00;
        assert!(all.iter().any(|place| place.at as u64 == l2), "L2");
        assert!(
            all.iter().filter(|place| place.kind == Kind::Bytes).count() > 24,
            "compressed bytes"
        );
    }
}
