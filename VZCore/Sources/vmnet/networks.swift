import StandInDarwin
import Synchronization

/// What `vmnet_network_configuration_ref` points to.
final class NetworkConfiguration {
    let mode: vmnet_mode_t

    init(mode: vmnet_mode_t) { self.mode = mode }
}

/// What `vmnet_network_ref` points to: a network that has its subnet as long as it exists.
final class Network {
    /// The third byte of 192.168.x.0/24.
    let third: UInt8

    /// Nil when every subnet is taken.
    init?() {
        let free = Self.taken.withLock { taken -> UInt8? in
            let free = (64...254).first { !taken.contains($0) }
            if let free { taken.insert(free) }
            return free
        }
        guard let free else { return nil }
        third = free
    }

    deinit {
        let mine = third
        Self.taken.withLock { _ = $0.remove(mine) }
    }

    private static let taken = Mutex<Set<UInt8>>([])
}
