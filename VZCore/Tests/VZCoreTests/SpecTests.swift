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

        @Test func what_is_left_out_or_null_has_its_default() throws {
            let plain = MachineSpec(bundle: "/b", os: .macos, cpus: 2, memoryBytes: 1 << 30)
            #expect(
                try MachineSpec.parse(#"{"bundle":"/b","os":"macos","cpus":2,"memory_bytes":1073741824}"#)
                    == plain)
            let nulls = #"""
                {"bundle":"/b","os":"macos","cpus":2,"memory_bytes":1073741824,"mac_address":null,"linux":null,
                 "network":null}
                """#
            #expect(try MachineSpec.parse(nulls) == plain)
            #expect(plain.network == .nat && plain.display == .headless && plain.diskSync == .none)
            #expect(
                plain.macAddress == nil && plain.consoleLog.isEmpty && plain.linux == nil && !plain.savable)
        }

        @Test func every_mistake_is_told_at_once_and_by_its_key() async {
            let json = #"""
                {"os":"windows","cpus":"two","memory_bytes":0,"mac_address":"01:00:5e:00:00:01","network":"bridged",
                 "display":1,"disk_sync":"always","console_log":5,"savable":"yes","vsock_listen":[0,4294967295,7,7],
                 "linux":{"kernel":1,"efi":"no","modules":[]},"colour":"red","Bundle":"/b"}
                """#
            let refused = await failure { _ = try MachineSpec.parse(json) }
            #expect(refused.code == .badSpec)
            for words in [
                "Bundle is no key of it", "colour is no key of it", "bundle is missing; it must be a path",
                "os must be one of macos, linux", "cpus must be a whole number",
                "memory_bytes must be more than 0",
                "mac_address must be a unicast address", "network must be one of nat, vmnet, none",
                "display must be one of headless, window", "disk_sync must be one of none, fsync, full",
                "console_log must be a path", "savable must be true or false",
                "vsock_listen has no port 0, 4294967295", "vsock_listen names a port twice",
                "linux.kernel must be a path", "linux.efi must be true or false",
                "linux.modules is no key of it",
            ] {
                #expect(refused.message.contains(words), "\(words)")
            }
            #expect(!refused.message.contains("bundle must be"), "one mistake for each key")
        }

        @Test(arguments: ["", "{", "[]", "17", "\"text\"", "null"])
        func a_text_that_is_no_object_is_refused(text: String) async {
            let refused = await failure { _ = try MachineSpec.parse(text) }
            #expect(refused.code == .badSpec)
            #expect(refused.message.hasPrefix("reading the machine's settings"))
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
        ])
        func a_machine_is_not_made_from_what_cannot_be(spec: MachineSpec, words: String) async {
            let refused = await failure { _ = try Machine(id: 1, spec: spec, observer: Log()) }
            #expect(refused.code == .badSpec)
            #expect(refused.message.contains(words))
        }
    }
}
