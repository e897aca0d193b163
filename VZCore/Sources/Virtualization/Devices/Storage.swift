import Foundation

/// Base of what stands behind a disk.
// objc: VZStorageDeviceAttachment 11.0
open class VZStorageDeviceAttachment: NSObject {
    override init() {}
}

/// A disk image in a file.
// objc: VZDiskImageStorageDeviceAttachment 11.0
open class VZDiskImageStorageDeviceAttachment: VZStorageDeviceAttachment {
    // objc: VZDiskImageStorageDeviceAttachment URL 11.0
    public let url: URL
    // objc: VZDiskImageStorageDeviceAttachment isReadOnly 11.0
    public let isReadOnly: Bool
    // objc: VZDiskImageStorageDeviceAttachment cachingMode 12.0
    public let cachingMode: VZDiskImageCachingMode
    // objc: VZDiskImageStorageDeviceAttachment synchronizationMode 12.0
    public let synchronizationMode: VZDiskImageSynchronizationMode

    /// Automatic caching, full synchronisation. Throws as the other initializer does.
    // objc: VZDiskImageStorageDeviceAttachment initWithURL:readOnly:error: 11.0
    public convenience init(url: URL, readOnly: Bool) throws {
        try self.init(url: url, readOnly: readOnly, cachingMode: .automatic, synchronizationMode: .full)
    }

    /// Throws `VZError.invalidDiskImage` if the file is not there, may not be opened so, or is not made of
    /// whole sectors of 512 bytes.
    // objc: VZDiskImageStorageDeviceAttachment initWithURL:readOnly:cachingMode:synchronizationMode:error: 12.0
    public init(
        url: URL, readOnly: Bool, cachingMode: VZDiskImageCachingMode,
        synchronizationMode: VZDiskImageSynchronizationMode
    ) throws {
        try DiskImage.check(url, readOnly: readOnly)
        self.url = url
        isReadOnly = readOnly
        self.cachingMode = cachingMode
        self.synchronizationMode = synchronizationMode
    }
}

/// How the host caches a disk image.
// objc: VZDiskImageCachingMode 12.0
public enum VZDiskImageCachingMode: Int, Sendable {
    // objc: VZDiskImageCachingMode VZDiskImageCachingModeAutomatic=0 12.0
    case automatic = 0
    // objc: VZDiskImageCachingMode VZDiskImageCachingModeUncached=1 12.0
    case uncached = 1
    // objc: VZDiskImageCachingMode VZDiskImageCachingModeCached=2 12.0
    case cached = 2
}

/// What a guest's flush does on the host.
// objc: VZDiskImageSynchronizationMode 12.0
public enum VZDiskImageSynchronizationMode: Int, Sendable {
    // objc: VZDiskImageSynchronizationMode VZDiskImageSynchronizationModeFull=1 12.0
    case full = 1
    // objc: VZDiskImageSynchronizationMode VZDiskImageSynchronizationModeFsync=2 12.0
    case fsync = 2
    // objc: VZDiskImageSynchronizationMode VZDiskImageSynchronizationModeNone=3 12.0
    case none = 3
}

/// Base of the disks.
// objc: VZStorageDeviceConfiguration 11.0
open class VZStorageDeviceConfiguration: NSObject {
    // objc: VZStorageDeviceConfiguration attachment 11.0
    public let attachment: VZStorageDeviceAttachment

    init(standIn attachment: VZStorageDeviceAttachment) { self.attachment = attachment }
}

/// A virtio disk.
// objc: VZVirtioBlockDeviceConfiguration 11.0
open class VZVirtioBlockDeviceConfiguration: VZStorageDeviceConfiguration {
    /// What the guest reads as the disk's serial number: at most 20 ASCII characters.
    // objc: VZVirtioBlockDeviceConfiguration blockDeviceIdentifier 12.3
    open var blockDeviceIdentifier = ""

    // objc: VZVirtioBlockDeviceConfiguration initWithAttachment: 11.0
    public init(attachment: VZStorageDeviceAttachment) { super.init(standIn: attachment) }

    /// Throws `VZError.invalidVirtualMachineConfiguration` unless `blockDeviceIdentifier` can be one.
    // objc: VZVirtioBlockDeviceConfiguration +validateBlockDeviceIdentifier:error: 12.3
    open class func validateBlockDeviceIdentifier(_ blockDeviceIdentifier: String) throws {
        guard blockDeviceIdentifier.utf8.count <= 20, blockDeviceIdentifier.allSatisfy(\.isASCII) else {
            throw VZError.configuration("The block device identifier is longer than 20 ASCII characters.")
        }
    }
}
