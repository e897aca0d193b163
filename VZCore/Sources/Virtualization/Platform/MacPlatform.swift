import Foundation

/// The platform of Macs.
// objc: VZMacPlatformConfiguration 12.0
open class VZMacPlatformConfiguration: VZPlatformConfiguration {
    /// The model, as the restore image or the template says. Until it is set it is an unsupported one.
    // objc: VZMacPlatformConfiguration hardwareModel 12.0
    open var hardwareModel: VZMacHardwareModel = VZMacHardwareModel.unset
    /// Which Mac this is. A new one unless set.
    // objc: VZMacPlatformConfiguration machineIdentifier 12.0
    open var machineIdentifier = VZMacMachineIdentifier()
    /// Needed.
    // objc: VZMacPlatformConfiguration auxiliaryStorage 12.0
    open var auxiliaryStorage: VZMacAuxiliaryStorage?

    // objc: VZMacPlatformConfiguration init 12.0
    public override init() {}
}

/// The model of a Mac. Its data is the framework's: a property list with `PlatformVersion` and
/// `MinimumSupportedOS`, so that a template from a Mac can be read here.
// objc: VZMacHardwareModel 12.0
open class VZMacHardwareModel: NSObject {
    struct Model: Equatable {
        let platform: Int
        let minimumOS: [Int]
    }

    static var unset: VZMacHardwareModel { VZMacHardwareModel(Data(), nil) }

    // objc: VZMacHardwareModel dataRepresentation 12.0
    public let dataRepresentation: Data
    let model: Model?

    /// Nil if the data is not a hardware model.
    // objc: VZMacHardwareModel initWithDataRepresentation: 12.0
    public init?(dataRepresentation: Data) {
        guard let list = PropertyList.dictionary(dataRepresentation),
            let platform = list["PlatformVersion"] as? Int,
            let minimum = list["MinimumSupportedOS"] as? [Int], minimum.count == 3
        else { return nil }
        self.dataRepresentation = dataRepresentation
        model = Model(platform: platform, minimumOS: minimum)
    }

    private init(_ data: Data, _ model: Model?) {
        dataRepresentation = data
        self.model = model
    }

    /// Whether this host can run it: no newer macOS is needed than the one the stand-in plays.
    // objc: VZMacHardwareModel isSupported 12.0
    open var isSupported: Bool {
        guard let model else { return false }
        return !StandInHost.current.operatingSystem.lexicographicallyPrecedes(model.minimumOS)
    }

    static func make(minimumOS: [Int]) -> VZMacHardwareModel {
        let data = PropertyList.data([
            "DataRepresentationVersion": .number(1), "MinimumSupportedOS": .numbers(minimumOS),
            "PlatformVersion": .number(2),
        ])
        return VZMacHardwareModel(data, Model(platform: 2, minimumOS: minimumOS))
    }
}

/// The identity of a Mac: a property list with its `ECID`, as the framework's.
// objc: VZMacMachineIdentifier 12.0
open class VZMacMachineIdentifier: NSObject {
    // objc: VZMacMachineIdentifier dataRepresentation 12.0
    public let dataRepresentation: Data

    /// A new, random one.
    // objc: VZMacMachineIdentifier init 12.0
    public override init() {
        dataRepresentation = PropertyList.data(["ECID": .number(.random(in: 1...UInt64(Int64.max)))])
    }

    /// One that was kept. Nil if the data is none.
    // objc: VZMacMachineIdentifier initWithDataRepresentation: 12.0
    public init?(dataRepresentation: Data) {
        guard PropertyList.dictionary(dataRepresentation)?["ECID"] is NSNumber else { return nil }
        self.dataRepresentation = dataRepresentation
    }
}

/// The file with what a Mac keeps outside its disk. Its content here: `StandInFile`.
// objc: VZMacAuxiliaryStorage 12.0
open class VZMacAuxiliaryStorage: NSObject {
    // objc: VZMacAuxiliaryStorage URL 12.0
    public let url: URL

    /// A storage that exists. That it does is checked by the configuration's `validate()`.
    // objc: VZMacAuxiliaryStorage initWithURL: 13.0
    public init(url: URL) { self.url = url }

    /// Makes a new storage for a model. Throws `VZError.invalidVirtualMachineConfiguration` if the file is
    /// there already and may not be overwritten, or cannot be written.
    // objc: VZMacAuxiliaryStorage initCreatingStorageAtURL:hardwareModel:options:error: 12.0
    public init(
        creatingStorageAt url: URL, hardwareModel: VZMacHardwareModel, options: InitializationOptions = []
    ) throws {
        self.url = url
        super.init()
        try BackingFile.create(
            StandInFile.data(hardwareModel: hardwareModel.dataRepresentation), at: url,
            overwrite: options.contains(.allowOverwrite), what: "auxiliary storage")
    }

    /// How a storage is made.
    // objc: VZMacAuxiliaryStorageInitializationOptions 12.0
    public struct InitializationOptions: OptionSet, Sendable {
        // objc: VZMacAuxiliaryStorageInitializationOptions 12.0
        public let rawValue: UInt
        // objc: VZMacAuxiliaryStorageInitializationOptions 12.0
        public init(rawValue: UInt) { self.rawValue = rawValue }
        // objc: VZMacAuxiliaryStorageInitializationOptions VZMacAuxiliaryStorageInitializationOptionAllowOverwrite=1 12.0
        public static let allowOverwrite = InitializationOptions(rawValue: 1)
    }
}
