import Foundation
import vmnet

/// Base of the network devices of a configuration.
// objc: VZNetworkDeviceConfiguration 11.0
open class VZNetworkDeviceConfiguration: NSObject {
    override init() {}

    /// Random unless set.
    // objc: VZNetworkDeviceConfiguration MACAddress 11.0
    open var macAddress: VZMACAddress = VZMACAddress.randomLocallyAdministered()
    /// Needed.
    // objc: VZNetworkDeviceConfiguration attachment 11.0
    open var attachment: VZNetworkDeviceAttachment?
}

/// A virtio network card.
// objc: VZVirtioNetworkDeviceConfiguration 11.0
open class VZVirtioNetworkDeviceConfiguration: VZNetworkDeviceConfiguration {
    // objc: VZVirtioNetworkDeviceConfiguration init 11.0
    public override init() {}
}

/// Base of what a network card is plugged into.
// objc: VZNetworkDeviceAttachment 11.0
open class VZNetworkDeviceAttachment: NSObject {
    override init() {}
}

/// The host's shared network, behind its NAT.
// objc: VZNATNetworkDeviceAttachment 11.0
open class VZNATNetworkDeviceAttachment: VZNetworkDeviceAttachment {
    // objc: VZNATNetworkDeviceAttachment init 11.0
    public override init() {}
}

/// A network this process made with vmnet. Keeps it.
// objc: VZVmnetNetworkDeviceAttachment 26.0
open class VZVmnetNetworkDeviceAttachment: VZNetworkDeviceAttachment {
    // objc: VZVmnetNetworkDeviceAttachment network 26.0
    public let network: vmnet_network_ref
    private let owned: AnyObject

    // objc: VZVmnetNetworkDeviceAttachment initWithNetwork: 26.0
    public init(network: vmnet_network_ref) {
        self.network = network
        owned = Unmanaged<AnyObject>.fromOpaque(UnsafeRawPointer(network)).takeUnretainedValue()
    }
}

/// A network card of a machine that was made.
// objc: VZNetworkDevice 12.0
open class VZNetworkDevice: NSObject {
    private let affinity: QueueAffinity
    private var current: VZNetworkDeviceAttachment?

    init(affinity: QueueAffinity, attachment: VZNetworkDeviceAttachment?) {
        self.affinity = affinity
        current = attachment
    }

    /// Nil when the attachment was lost. May be set while the machine runs. Only on the machine's queue.
    // objc: VZNetworkDevice attachment 12.0
    open var attachment: VZNetworkDeviceAttachment? {
        get {
            affinity.check("VZNetworkDevice.attachment")
            return current
        }
        set {
            affinity.check("VZNetworkDevice.attachment")
            current = newValue
        }
    }
}
