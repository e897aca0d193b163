import Dispatch
import Foundation

/// A restore image (IPSW): which macOS it holds, and what it needs. In the stand-in a JSON file, see
/// `RestoreImageFile`.
// objc: VZMacOSRestoreImage 12.0
open class VZMacOSRestoreImage: NSObject {
    // objc: VZMacOSRestoreImage URL 12.0
    public let url: URL
    // objc: VZMacOSRestoreImage buildVersion 12.0
    public let buildVersion: String
    // objc: VZMacOSRestoreImage operatingSystemVersion 12.0
    public let operatingSystemVersion: OperatingSystemVersion
    /// Whether this host can install it.
    // objc: VZMacOSRestoreImage isSupported 13.0
    open var isSupported: Bool { mostFeaturefulSupportedConfiguration != nil }
    /// What the newest Mac it supports needs; nil if this host cannot run it.
    // objc: VZMacOSRestoreImage mostFeaturefulSupportedConfiguration 12.0
    public let mostFeaturefulSupportedConfiguration: VZMacOSConfigurationRequirements?

    init(
        url: URL, buildVersion: String, operatingSystemVersion: OperatingSystemVersion,
        requirements: VZMacOSConfigurationRequirements?
    ) {
        self.url = url
        self.buildVersion = buildVersion
        self.operatingSystemVersion = operatingSystemVersion
        mostFeaturefulSupportedConfiguration = requirements
    }

    /// Reads a restore image in a local file. The handler is called on some thread. Ends with
    /// `VZError.restoreImageLoadFailed` or `.invalidRestoreImage`.
    // objc: VZMacOSRestoreImage +loadFileURL:completionHandler: 12.0
    @preconcurrency
    open class func load(
        from fileURL: URL,
        completionHandler: @escaping @Sendable (Result<VZMacOSRestoreImage, any Error>) -> Void
    ) {
        if !fileURL.isFileURL { Violations.report("the restore image \(fileURL) is not a local file") }
        FileWork.queue.async {
            completionHandler(Result { try VZMacOSRestoreImage(fileURL) })
        }
    }

    /// Asks for the newest restore image this host can run; its URL is one to download. The handler is called
    /// on some thread. The stand-in knows one only when a test has set it (`StandIn.latestRestoreImage`);
    /// else it ends with `VZError.restoreImageCatalogLoadFailed`.
    // objc: VZMacOSRestoreImage +fetchLatestSupportedWithCompletionHandler: 12.0
    @preconcurrency
    open class func fetchLatestSupported(
        completionHandler: @escaping @Sendable (Result<VZMacOSRestoreImage, any Error>) -> Void
    ) {
        let latest = StandIn.latestRestoreImage
        FileWork.queue.async { completionHandler(Result { try catalogued(latest) }) }
    }

    /// What a catalog with that image, or without any, leads to.
    class func catalogued(_ latest: URL?) throws -> VZMacOSRestoreImage {
        guard let latest else {
            throw VZError(
                .restoreImageCatalogLoadFailed, failure: "The restore image catalog failed to load.",
                reason: "There is no catalog of restore images here.")
        }
        return try VZMacOSRestoreImage(latest)
    }

    private convenience init(_ url: URL) throws {
        let file = try RestoreImageFile.read(url)
        self.init(
            url: url, buildVersion: file.build, operatingSystemVersion: file.operatingSystemVersion,
            requirements: file.requirements)
    }
}

/// What a restore image needs of a machine.
// objc: VZMacOSConfigurationRequirements 12.0
open class VZMacOSConfigurationRequirements: NSObject {
    // objc: VZMacOSConfigurationRequirements hardwareModel 12.0
    public let hardwareModel: VZMacHardwareModel
    // objc: VZMacOSConfigurationRequirements minimumSupportedCPUCount 12.0
    public let minimumSupportedCPUCount: Int
    /// Bytes.
    // objc: VZMacOSConfigurationRequirements minimumSupportedMemorySize 12.0
    public let minimumSupportedMemorySize: UInt64

    init(hardwareModel: VZMacHardwareModel, minimumCPUs: Int, minimumMemory: UInt64) {
        self.hardwareModel = hardwareModel
        minimumSupportedCPUCount = minimumCPUs
        minimumSupportedMemorySize = minimumMemory
    }
}
