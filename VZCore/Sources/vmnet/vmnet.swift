import StandInDarwin

// swift-format-ignore: AlwaysUseLowerCamelCase, TypeNamesShouldBeCapitalized
/// A network being described. Made by `vmnet_network_configuration_create`, which the caller owns.
// c: vmnet_network_configuration_ref 26.0
public typealias vmnet_network_configuration_ref = OpaquePointer
// swift-format-ignore: AlwaysUseLowerCamelCase, TypeNamesShouldBeCapitalized
/// A network. Made by `vmnet_network_create`, which the caller owns.
// c: vmnet_network_ref 26.0
public typealias vmnet_network_ref = OpaquePointer
// swift-format-ignore: AlwaysUseLowerCamelCase, TypeNamesShouldBeCapitalized
/// How a network is connected.
// c: vmnet_mode_t 26.0
public typealias vmnet_mode_t = operating_modes_t

// swift-format-ignore: AlwaysUseLowerCamelCase, TypeNamesShouldBeCapitalized
/// How a network is connected.
// c: operating_modes_t 10.10
public enum operating_modes_t: UInt32, Sendable {
    // c: VMNET_HOST_MODE 10.10
    case VMNET_HOST_MODE = 1000
    // c: VMNET_SHARED_MODE 10.10
    case VMNET_SHARED_MODE = 1001
    // c: VMNET_BRIDGED_MODE 10.15
    case VMNET_BRIDGED_MODE = 1002
}

// swift-format-ignore: AlwaysUseLowerCamelCase, TypeNamesShouldBeCapitalized
/// What vmnet answers.
// c: vmnet_return_t 10.10
public enum vmnet_return_t: UInt32, Sendable {
    // c: VMNET_SUCCESS 10.10
    case VMNET_SUCCESS = 1000
    // c: VMNET_FAILURE 10.10
    case VMNET_FAILURE = 1001
    // c: VMNET_MEM_FAILURE 10.10
    case VMNET_MEM_FAILURE = 1002
    // c: VMNET_INVALID_ARGUMENT 10.10
    case VMNET_INVALID_ARGUMENT = 1003
    // c: VMNET_SETUP_INCOMPLETE 10.10
    case VMNET_SETUP_INCOMPLETE = 1004
    // c: VMNET_INVALID_ACCESS 10.10
    case VMNET_INVALID_ACCESS = 1005
    // c: VMNET_PACKET_TOO_BIG 10.10
    case VMNET_PACKET_TOO_BIG = 1006
    // c: VMNET_BUFFER_EXHAUSTED 10.10
    case VMNET_BUFFER_EXHAUSTED = 1007
    // c: VMNET_TOO_MANY_PACKETS 10.10
    case VMNET_TOO_MANY_PACKETS = 1008
    // c: VMNET_SHARING_SERVICE_BUSY 10.10
    case VMNET_SHARING_SERVICE_BUSY = 1009
    // c: VMNET_NOT_AUTHORIZED 10.10
    case VMNET_NOT_AUTHORIZED = 1010
}

// swift-format-ignore: AlwaysUseLowerCamelCase, TypeNamesShouldBeCapitalized
/// A new configuration, the caller's to release. Nil, with the reason in `status`, if there can be none: a
/// bridge needs an interface to go to.
// c: vmnet_network_configuration_create 26.0
public func vmnet_network_configuration_create(
    _ mode: vmnet_mode_t, _ status: UnsafeMutablePointer<vmnet_return_t>?
) -> vmnet_network_configuration_ref? {
    guard mode != .VMNET_BRIDGED_MODE else {
        status?.pointee = .VMNET_INVALID_ARGUMENT
        return nil
    }
    status?.pointee = .VMNET_SUCCESS
    return OpaquePointer(Unmanaged.passRetained(NetworkConfiguration(mode: mode)).toOpaque())
}

// swift-format-ignore: AlwaysUseLowerCamelCase, TypeNamesShouldBeCapitalized
/// Makes a network with a subnet no other has, the caller's to release; the subnet is free again when the
/// last holder has. Nil, with the reason in `status`, if that fails.
// c: vmnet_network_create 26.0
public func vmnet_network_create(
    _ config: vmnet_network_configuration_ref, _ status: UnsafeMutablePointer<vmnet_return_t>?
) -> vmnet_network_ref? {
    guard let network = Network() else {
        status?.pointee = .VMNET_FAILURE
        return nil
    }
    status?.pointee = .VMNET_SUCCESS
    return OpaquePointer(Unmanaged.passRetained(network).toOpaque())
}

// swift-format-ignore: AlwaysUseLowerCamelCase, TypeNamesShouldBeCapitalized
/// The subnet of a network and its mask, in network order.
// c: vmnet_network_get_ipv4_subnet 26.0
public func vmnet_network_get_ipv4_subnet(
    _ network: vmnet_network_ref, _ subnet: UnsafeMutablePointer<in_addr>,
    _ mask: UnsafeMutablePointer<in_addr>
) {
    let third = Unmanaged<Network>.fromOpaque(UnsafeRawPointer(network)).takeUnretainedValue().third
    subnet.pointee = in_addr(s_addr: (0xc0a8_0000 | UInt32(third) << 8).bigEndian)
    mask.pointee = in_addr(s_addr: UInt32(0xffff_ff00).bigEndian)
}
