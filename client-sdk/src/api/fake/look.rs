//! What tests may look at: the fake relay's queues, keys and groups, as they are.

use undertone_wire::{Bytes, Delivery, DeviceId, GroupId, GroupPosition, suite};

use super::{FakeRelay, groups, state};

impl FakeRelay {
    /// How many entries a device has not acked; 0 if there is no such device.
    pub fn queue_len(&self, device: &DeviceId) -> usize {
        self.look(|state| state.devices.get(device).map_or(0, |device| device.queue.len()))
    }

    /// The entries that a device has not acked, oldest first.
    pub fn queue(&self, device: &DeviceId) -> Vec<Delivery> {
        self.look(|state| state.devices.get(device).map(state::Device::deliveries).unwrap_or_default())
    }

    /// The number that a device's next entry will get; `None` if there is no such device.
    pub fn next_seq(&self, device: &DeviceId) -> Option<u64> {
        self.look(|state| state.devices.get(device).map(|device| device.next_seq))
    }

    /// The number up to which a device has acked; `None` if there is no such device.
    pub fn acked_seq(&self, device: &DeviceId) -> Option<u64> {
        self.look(|state| state.devices.get(device).map(|device| device.acked_seq))
    }

    /// How many streams a device has opened.
    pub fn streams_opened(&self, device: &DeviceId) -> u64 {
        self.look(|state| state.devices.get(device).map_or(0, |device| device.stream))
    }

    /// The node at which a device has opened its newest stream; `None` before the first.
    pub fn node_of_stream(&self, device: &DeviceId) -> Option<usize> {
        self.look(|state| state.devices.get(device).filter(|device| device.stream > 0).map(|device| device.node))
    }

    /// A device's key packages that can still be handed out: one-time ones, and whether there is a last-resort one.
    pub fn key_packages(&self, device: &DeviceId) -> (u64, bool) {
        self.key_packages_of(device, suite::DEFAULT)
    }

    /// The same of a suite.
    pub fn key_packages_of(&self, device: &DeviceId, suite: u16) -> (u64, bool) {
        self.look(|state| state.keys_of(device, suite))
    }

    /// A device's last-resort key package.
    pub fn last_resort(&self, device: &DeviceId) -> Option<Bytes> {
        self.last_resort_of(device, suite::DEFAULT)
    }

    /// The same of a suite.
    pub fn last_resort_of(&self, device: &DeviceId, suite: u16) -> Option<Bytes> {
        self.look(|state| state.devices.get(device)?.keys.last_resort(suite).map(|key| key.bytes.clone()))
    }

    /// Where a group stands; `None` if there is none.
    pub fn group_position(&self, group: &GroupId) -> Option<GroupPosition> {
        self.look(|state| state.groups.get(group).map(|group| group.position))
    }

    /// A group's member devices, in ascending order.
    pub fn group_members(&self, group: &GroupId) -> Vec<DeviceId> {
        self.look(|state| state.groups.get(group).map(groups::GroupState::member_devices).unwrap_or_default())
    }

    /// Which groups were recorded to go on in a group's place, those that were replaced included: each with the commit at
    /// which those stood for whom it goes on.
    pub fn successors(&self, group: &GroupId) -> Vec<(u64, GroupId)> {
        self.look(|state| state.groups.get(group).map(|group| group.recorded.clone()).unwrap_or_default())
    }

    /// Waits until `holds` is true of the relay. Looks again after each change.
    pub async fn until(&self, holds: impl Fn(&Self) -> bool) {
        self.until_some(|| holds(self).then_some(())).await;
    }
}
