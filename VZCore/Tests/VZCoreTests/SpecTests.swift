import Foundation
import Testing

@testable import VZCore

// swift-format-ignore: AlwaysUseLowerCamelCase
extension VZCoreTests {
    @Suite struct Spec {
        private static let full = MachineSpec(
            bundle: "/r/1.bundle", os: .linux, cpus: 4, memoryBytes: 8 << 30, macAddress: "52:54:00:12:34:56",
            network: .vmnet, display: .window, diskSync: .full, consoleLog: "console.log",
            linux: .init(kernel: "kernel", initrd: "initrd", commandLine: "console=hvc0"),
            vsockListen: [1, 1024],
            savable: true)

        @Test func a_spec_survives_its_own_json() throws {
            let json = String(decoding: try JSONEncoder().encode(Self.full), as: UTF8.self)
            #expect(try MachineSpec.parse(json) == Self.full)
            for key in [
                "memory_bytes", "mac_address", "disk_sync", "console_log", "command_line", "vsock_listen",
            ] {
                #expect(json.contains("\"\(key)\""))
            }
        }

        @Test func an_address_and_a_linux_boot_may_be_left_out() throws {
            let plain = MachineSpec(bundle: "/b", os: .macos, cpus: 2, memoryBytes: 1 << 30)
            let json = String(decoding: try JSONEncoder().encode(plain), as: UTF8.self)
            #expect(!json.contains("mac_address") && !json.contains("linux"))
            #expect(try MachineSpec.parse(json) == plain)
        }

        @Test(arguments: [
            (#""os":"linux""#, #""os":"windows""#, "os: "), (#""cpus":4"#, #""cpus":"two""#, "cpus: "),
            (#""cpus":4"#, #""cpu":4"#, "the key cpu is unknown"),
            (#""cpus":4,"#, "", "cpus: the key is missing"), (#""cpus":4"#, #""cpus":null"#, "cpus: "),
            (#""network":"vmnet""#, #""network":"bridged""#, "network: "),
            (#""disk_sync":"full""#, #""disk_sync":"always""#, "disk_sync: "),
            (#""efi":false"#, #""efi":"no""#, "linux.efi: "),
            (#"[1,1024]"#, #"[1,"two"]"#, "vsock_listen"),
        ])
        func a_wrong_key_or_value_is_refused_by_its_key(from: String, to: String, reason: String) async throws
        {
            let encoder = JSONEncoder()
            encoder.outputFormatting = .sortedKeys
            let json = String(decoding: try encoder.encode(Self.full), as: UTF8.self)
            try #require(json.contains(from))
            let refused = await failure {
                _ = try MachineSpec.parse(json.replacingOccurrences(of: from, with: to))
            }
            #expect(refused.code == .badSpec)
            #expect(refused.reason.hasPrefix("reading the machine's settings: \(reason)"), "\(refused)")
        }

        @Test(arguments: ["", "{", "[]", "17", "\"text\"", "null"])
        func a_text_that_is_not_an_object_is_refused(text: String) async {
            let refused = await failure { _ = try MachineSpec.parse(text) }
            #expect(refused.code == .badSpec)
            #expect(refused.reason.hasPrefix("reading the machine's settings"))
        }

        @Test(arguments: [
            (
                MachineSpec(bundle: "b", os: .macos, cpus: 1, memoryBytes: 1),
                "bundle must be an absolute path, not \"b\""
            ),
            (
                MachineSpec(bundle: "/b", os: .macos, cpus: 0, memoryBytes: 1),
                "cpus must be at least 1, not 0"
            ),
            (
                MachineSpec(bundle: "/b", os: .macos, cpus: 1, memoryBytes: 1, macAddress: "52:54:00"),
                "not \"52:54:00\""
            ),
            (
                MachineSpec(bundle: "/b", os: .macos, cpus: 1, memoryBytes: 1, linux: .init(efi: true)),
                "linux is for os linux only"
            ),
            (
                MachineSpec(bundle: "/b", os: .linux, cpus: 1, memoryBytes: 1, linux: .init()),
                "linux needs either a kernel or efi"
            ),
            (
                MachineSpec(
                    bundle: "/b", os: .linux, cpus: 1, memoryBytes: 1, linux: .init(kernel: "k", efi: true)),
                "linux needs either a kernel or efi"
            ),
            (
                MachineSpec(bundle: "/b", os: .macos, cpus: 1, memoryBytes: 0),
                "memory_bytes must be more than 0"
            ),
            (
                MachineSpec(
                    bundle: "/b", os: .macos, cpus: 1, memoryBytes: 1, macAddress: "01:00:5e:00:00:01"),
                "mac_address must be a unicast address"
            ),
            (
                MachineSpec(bundle: "/b", os: .macos, cpus: 1, memoryBytes: 1, vsockListen: [7, .max]),
                "vsock_listen has 4294967295"
            ),
            (
                MachineSpec(bundle: "/b", os: .macos, cpus: 1, memoryBytes: 1, vsockListen: [7, 7]),
                "vsock_listen names a port twice"
            ),
        ])
        func a_machine_is_not_made_from_what_cannot_be(spec: MachineSpec, reason: String) async {
            let refused = await failure { _ = try Machine(id: 1, spec: spec, observer: Log()) }
            #expect(refused.code == .badSpec)
            #expect(refused.reason.contains(reason))
        }
    }
}
