@_exported import Glibc

// swift-format-ignore: AlwaysUseLowerCamelCase, TypeNamesShouldBeCapitalized
/// The six bytes of an Ethernet address (`net/ethernet.h`).
// c: ether_addr 10.0
public struct ether_addr: Sendable {
    // c: ether_addr 10.0
    public var octet: (UInt8, UInt8, UInt8, UInt8, UInt8, UInt8)

    // c: ether_addr 10.0
    public init() { octet = (0, 0, 0, 0, 0, 0) }
    // c: ether_addr 10.0
    public init(octet: (UInt8, UInt8, UInt8, UInt8, UInt8, UInt8)) { self.octet = octet }
}

/// The C name of `ether_addr`.
// swift-format-ignore: TypeNamesShouldBeCapitalized
// c: ether_addr_t 10.0
public typealias ether_addr_t = ether_addr
