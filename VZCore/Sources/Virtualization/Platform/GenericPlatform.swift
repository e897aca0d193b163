import Foundation

/// Base of the platforms.
// objc: VZPlatformConfiguration 12.0
open class VZPlatformConfiguration: NSObject {
    override init() {}
}

/// The platform of guests that are not Macs.
// objc: VZGenericPlatformConfiguration 12.0
open class VZGenericPlatformConfiguration: VZPlatformConfiguration {
    /// Which machine this is; a saved state can only be restored by a machine with the same one.
    // objc: VZGenericPlatformConfiguration machineIdentifier 13.0
    open var machineIdentifier = VZGenericMachineIdentifier()

    // objc: VZGenericPlatformConfiguration init 12.0
    public override init() {}
}

/// The identity of a generic machine: in the stand-in a property list with a random UUID.
// objc: VZGenericMachineIdentifier 13.0
open class VZGenericMachineIdentifier: NSObject {
    // objc: VZGenericMachineIdentifier dataRepresentation 13.0
    public let dataRepresentation: Data

    /// A new, random one.
    // objc: VZGenericMachineIdentifier init 13.0
    public override init() {
        dataRepresentation = PropertyList.data(["UUID": .text(UUID().uuidString)])
    }

    /// One that was kept. Nil if the data is none.
    // objc: VZGenericMachineIdentifier initWithDataRepresentation: 13.0
    public init?(dataRepresentation: Data) {
        guard let uuid = PropertyList.dictionary(dataRepresentation)?["UUID"] as? String,
            UUID(uuidString: uuid) != nil
        else { return nil }
        self.dataRepresentation = dataRepresentation
    }
}
