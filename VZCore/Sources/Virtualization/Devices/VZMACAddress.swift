import Foundation
import StandInDarwin

/// The address of a network card.
// objc: VZMACAddress 11.0
open class VZMACAddress: NSObject {
    private let bytes: [UInt8]

    init(bytes: [UInt8]) { self.bytes = bytes }

    // objc: VZMACAddress initWithEthernetAddress: 11.0
    public init(ethernetAddress: ether_addr_t) {
        let octet = ethernetAddress.octet
        bytes = [octet.0, octet.1, octet.2, octet.3, octet.4, octet.5]
    }

    /// Six pairs of hexadecimal digits with colons between them; nil for anything else.
    // objc: VZMACAddress initWithString: 11.0
    public convenience init?(string: String) {
        let parts = string.split(separator: ":", omittingEmptySubsequences: false)
        let bytes = parts.compactMap { part in
            part.utf8.count == 2 && part.allSatisfy(\.isHexDigit) ? UInt8(part, radix: 16) : nil
        }
        guard parts.count == 6, bytes.count == 6 else { return nil }
        self.init(bytes: bytes)
    }

    /// A random unicast address no maker owns.
    // objc: VZMACAddress +randomLocallyAdministeredAddress 11.0
    open class func randomLocallyAdministered() -> VZMACAddress {
        var bytes = (0..<6).map { _ in UInt8.random(in: 0...255) }
        bytes[0] = bytes[0] & 0xfc | 0x02
        return VZMACAddress(bytes: bytes)
    }

    // objc: VZMACAddress ethernetAddress 11.0
    open var ethernetAddress: ether_addr_t {
        ether_addr_t(octet: (bytes[0], bytes[1], bytes[2], bytes[3], bytes[4], bytes[5]))
    }
    /// Lower case, with colons.
    // objc: VZMACAddress string 11.0
    open var string: String { bytes.map { String(format: "%02x", $0) }.joined(separator: ":") }
    // objc: VZMACAddress isBroadcastAddress 11.0
    open var isBroadcastAddress: Bool { bytes.allSatisfy { $0 == 0xff } }
    // objc: VZMACAddress isMulticastAddress 11.0
    open var isMulticastAddress: Bool { bytes[0] & 1 == 1 }
    // objc: VZMACAddress isUnicastAddress 11.0
    open var isUnicastAddress: Bool { !isMulticastAddress }
    // objc: VZMACAddress isLocallyAdministeredAddress 11.0
    open var isLocallyAdministeredAddress: Bool { bytes[0] & 2 == 2 }
    // objc: VZMACAddress isUniversallyAdministeredAddress 11.0
    open var isUniversallyAdministeredAddress: Bool { !isLocallyAdministeredAddress }

    open override func isEqual(_ object: Any?) -> Bool { (object as? VZMACAddress)?.bytes == bytes }
    open override var hash: Int { bytes.hashValue }
}
