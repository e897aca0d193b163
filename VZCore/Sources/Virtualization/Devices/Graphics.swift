import Foundation

/// Base of the graphics devices of a configuration.
// objc: VZGraphicsDeviceConfiguration 12.0
open class VZGraphicsDeviceConfiguration: NSObject {
    override init() {}
}

/// Base of the displays of a configuration.
// objc: VZGraphicsDisplayConfiguration 14.0
open class VZGraphicsDisplayConfiguration: NSObject {
    override init() {}
}

/// A Mac's graphics.
// objc: VZMacGraphicsDeviceConfiguration 12.0
open class VZMacGraphicsDeviceConfiguration: VZGraphicsDeviceConfiguration {
    /// Exactly one is valid.
    // objc: VZMacGraphicsDeviceConfiguration displays 12.0
    open var displays: [VZMacGraphicsDisplayConfiguration] = []

    // objc: VZMacGraphicsDeviceConfiguration init 12.0
    public override init() {}
}

/// A Mac's display.
// objc: VZMacGraphicsDisplayConfiguration 12.0
open class VZMacGraphicsDisplayConfiguration: VZGraphicsDisplayConfiguration {
    // objc: VZMacGraphicsDisplayConfiguration widthInPixels 12.0
    open var widthInPixels: Int
    // objc: VZMacGraphicsDisplayConfiguration heightInPixels 12.0
    open var heightInPixels: Int
    // objc: VZMacGraphicsDisplayConfiguration pixelsPerInch 12.0
    open var pixelsPerInch: Int

    // objc: VZMacGraphicsDisplayConfiguration initWithWidthInPixels:heightInPixels:pixelsPerInch: 12.0
    public init(widthInPixels: Int, heightInPixels: Int, pixelsPerInch: Int) {
        self.widthInPixels = widthInPixels
        self.heightInPixels = heightInPixels
        self.pixelsPerInch = pixelsPerInch
    }
}

/// Virtio graphics, for guests that are not Macs.
// objc: VZVirtioGraphicsDeviceConfiguration 13.0
open class VZVirtioGraphicsDeviceConfiguration: VZGraphicsDeviceConfiguration {
    /// At most one is valid.
    // objc: VZVirtioGraphicsDeviceConfiguration scanouts 13.0
    open var scanouts: [VZVirtioGraphicsScanoutConfiguration] = []

    // objc: VZVirtioGraphicsDeviceConfiguration init 13.0
    public override init() {}
}

/// A display of virtio graphics.
// objc: VZVirtioGraphicsScanoutConfiguration 13.0
open class VZVirtioGraphicsScanoutConfiguration: VZGraphicsDisplayConfiguration {
    // objc: VZVirtioGraphicsScanoutConfiguration widthInPixels 13.0
    open var widthInPixels: Int
    // objc: VZVirtioGraphicsScanoutConfiguration heightInPixels 13.0
    open var heightInPixels: Int

    // objc: VZVirtioGraphicsScanoutConfiguration initWithWidthInPixels:heightInPixels: 13.0
    public init(widthInPixels: Int, heightInPixels: Int) {
        self.widthInPixels = widthInPixels
        self.heightInPixels = heightInPixels
    }
}
