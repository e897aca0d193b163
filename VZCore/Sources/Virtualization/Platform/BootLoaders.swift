import Foundation

/// Base of the boot loaders.
// objc: VZBootLoader 11.0
open class VZBootLoader: NSObject {
    override init() {}
}

/// Boots a Mac from its first disk.
// objc: VZMacOSBootLoader 12.0
open class VZMacOSBootLoader: VZBootLoader {
    // objc: VZMacOSBootLoader init 12.0
    public override init() {}
}

/// Boots a Linux kernel. In the stand-in the kernel is the program the guest runs, its command line the
/// arguments.
// objc: VZLinuxBootLoader 11.0
open class VZLinuxBootLoader: VZBootLoader {
    // objc: VZLinuxBootLoader kernelURL 11.0
    open var kernelURL: URL
    // objc: VZLinuxBootLoader commandLine 11.0
    open var commandLine = ""
    // objc: VZLinuxBootLoader initialRamdiskURL 11.0
    open var initialRamdiskURL: URL?

    // objc: VZLinuxBootLoader initWithKernelURL: 11.0
    public init(kernelURL: URL) { self.kernelURL = kernelURL }
}

/// Boots what EFI finds on the first disk.
// objc: VZEFIBootLoader 13.0
open class VZEFIBootLoader: VZBootLoader {
    /// Where EFI keeps its variables. Needed.
    // objc: VZEFIBootLoader variableStore 13.0
    open var variableStore: VZEFIVariableStore?

    // objc: VZEFIBootLoader init 13.0
    public override init() {}
}

/// The file with EFI's variables.
// objc: VZEFIVariableStore 13.0
open class VZEFIVariableStore: NSObject {
    // objc: VZEFIVariableStore URL 13.0
    public let url: URL

    /// A store that exists. That it does is checked by the configuration's `validate()`.
    // objc: VZEFIVariableStore initWithURL: 13.0
    public init(url: URL) { self.url = url }

    /// Makes a new store. Throws `VZError.invalidVirtualMachineConfiguration` if the file already exists
    /// and may not be overwritten, or cannot be written.
    // objc: VZEFIVariableStore initCreatingVariableStoreAtURL:options:error: 13.0
    public init(creatingVariableStoreAt url: URL, options: InitializationOptions = []) throws {
        self.url = url
        super.init()
        try BackingFile.create(
            Data("{}\n".utf8), at: url, overwrite: options.contains(.allowOverwrite),
            what: "EFI variable store")
    }

    /// How a store is made.
    // objc: VZEFIVariableStoreInitializationOptions 13.0
    public struct InitializationOptions: OptionSet, Sendable {
        // objc: VZEFIVariableStoreInitializationOptions 13.0
        public let rawValue: UInt
        // objc: VZEFIVariableStoreInitializationOptions 13.0
        public init(rawValue: UInt) { self.rawValue = rawValue }
        // objc: VZEFIVariableStoreInitializationOptions VZEFIVariableStoreInitializationOptionAllowOverwrite=1 13.0
        public static let allowOverwrite = InitializationOptions(rawValue: 1)
    }
}
