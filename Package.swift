// swift-tools-version: 6.0
import Foundation
import PackageDescription

// On macOS `Virtualization`, `vmnet`, `AppKit` and `Darwin` are the system's. On Linux the stand-ins below take their
// names, so that VZCore compiles and runs unchanged. The manifest runs on the machine that builds, and nothing here is
// built for another one.
#if os(Linux)
    let standIns: [Target] = [
        .target(name: "CLinux", path: "VZCore/Sources/CLinux"),
        .target(name: "StandInDarwin", dependencies: ["CLinux"], path: "VZCore/Sources/Darwin"),
        .target(name: "vmnet", dependencies: ["StandInDarwin"], path: "VZCore/Sources/vmnet"),
        .target(name: "AppKit", path: "VZCore/Sources/AppKit"),
        .target(
            name: "Virtualization", dependencies: ["AppKit", "CLinux", "StandInDarwin", "vmnet"],
            path: "VZCore/Sources/Virtualization"),
        // What the stand-in's tests need a separate process for: to be killed, to trap, to be a guest.
        .executableTarget(
            name: "StandInProbe", dependencies: ["AppKit", "Virtualization"],
            path: "VZCore/Tests/StandInProbe"),
        .testTarget(
            name: "VirtualizationTests",
            dependencies: ["AppKit", "StandInDarwin", "StandInProbe", "Virtualization", "vmnet"],
            path: "VZCore/Tests/VirtualizationTests"),
    ]
    let system: [Target.Dependency] = ["AppKit", "StandInDarwin", "Virtualization", "vmnet"]
    // A module that is called Darwin makes `canImport(Darwin)` true for all that is compiled beside it, also for
    // the test runner SwiftPM writes, which then wants the Mac's XCTest. So only the users of `system` see it by
    // that name.
    let systemSettings: [SwiftSetting] = [.unsafeFlags(["-module-alias", "Darwin=StandInDarwin"])]
    // VZCore's tests run guests that only the stand-in can.
    let coreTests: [Target] = [
        .executableTarget(name: "WindowProbe", dependencies: ["VZCore"], path: "VZCore/Tests/WindowProbe"),
        .testTarget(
            name: "VZCoreTests", dependencies: ["VZCore", "WindowProbe"] + system,
            path: "VZCore/Tests/VZCoreTests", swiftSettings: systemSettings),
    ]
#else
    let standIns: [Target] = []
    let system: [Target.Dependency] = []
    let systemSettings: [SwiftSetting] = []
    let coreTests: [Target] = []
#endif

// swift-bridge's glue is made by cargo (bridge/build.rs); without it the package is VZCore alone.
let bridge = "bridge/swift"
let hasGlue = FileManager.default.fileExists(
    atPath: Context.packageDirectory + "/" + bridge + "/VZBridge/generated/vz_bridge.swift")
let bridgeTargets: [Target] =
    hasGlue
    ? [
        .target(name: "CVZBridge", path: bridge + "/CVZBridge"),
        .target(
            name: "VZBridge", dependencies: ["VZCore", "CVZBridge"] + system, path: bridge + "/VZBridge",
            // What swift-bridge generates is not written for Swift 6.
            swiftSettings: [.swiftLanguageMode(.v5)] + systemSettings),
    ] : []

let package = Package(
    name: "VZCore",
    platforms: [.macOS("26.0")],
    products: [.library(name: "VZCore", targets: ["VZCore"])]
        + (hasGlue ? [.library(name: "VZBridge", type: .static, targets: ["VZBridge"])] : []),
    targets: standIns + [
        .target(
            name: "VZCore", dependencies: system, path: "VZCore/Sources/VZCore", swiftSettings: systemSettings
        )
    ] + coreTests + bridgeTargets,
    swiftLanguageModes: [.v6]
)
