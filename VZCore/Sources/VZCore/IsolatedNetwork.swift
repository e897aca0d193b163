import Virtualization
import vmnet

/// A NAT network with one VM on it. A network belongs to the process that created it
/// (VZVmnetNetworkDeviceAttachment.h), and networks are not connected, so guests cannot reach one another.
final class IsolatedNetwork {
    let attachment: VZVmnetNetworkDeviceAttachment
    private let network: vmnet_network_ref

    /// - Throws: `network`.
    init(for bundle: String) throws(VZFailure) {
        var status = vmnet_return_t.VMNET_SUCCESS
        guard let configuration = vmnet_network_configuration_create(.VMNET_SHARED_MODE, &status) else {
            throw Self.failure("configuring", bundle, status)
        }
        defer { Self.release(configuration) }
        guard let network = vmnet_network_create(configuration, &status) else {
            throw Self.failure("creating", bundle, status)
        }
        self.network = network
        attachment = VZVmnetNetworkDeviceAttachment(network: network)
    }

    deinit { Self.release(network) }

    /// vmnet.h requires `CFRelease` of its objects; Swift sees bare pointers and has no `CFRelease` for those.
    private static func release(_ object: OpaquePointer) {
        Unmanaged<AnyObject>.fromOpaque(UnsafeRawPointer(object)).release()
    }

    private static func failure(_ doing: String, _ bundle: String, _ status: vmnet_return_t) -> VZFailure {
        VZFailure(
            code: .network,
            reason:
                "\(doing) the network of the VM of \(bundle): vmnet refused it (vmnet_return_t \(status.rawValue))"
        )
    }
}
