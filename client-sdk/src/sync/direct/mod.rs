//! Direct messages: encrypted for each device of two accounts ([`send`]), read ([`receive`]), and sent again by another session
//! if that is not possible ([`heal`]).
//!
//! Every message goes to all devices of both accounts. With each there is an Olm session; around what the session makes is
//! an envelope sealed to the device, all of one size. The sending device gets one too, with nothing in it, by which it
//! knows that the others were sent and where among them the message stands.
//!
//! Invariant: two devices that begin a session at the same time settle on one by a rule both know: the one with the higher
//! generation, of those the one whose id is lower. Whoever hears of a session that comes first by it forgets the others.

pub(super) mod heal;
pub(super) mod receive;
pub(super) mod send;
