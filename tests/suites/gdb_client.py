"""A debugger's part of the remote serial protocol (GDB manual, appendix E): gdb_client.py PORT

Says the kinds of answers and their sizes, not what is in them: registers and addresses change from run to run."""

import socket
import sys


class Remote:
    def __init__(self, port):
        self.connection = socket.create_connection(("127.0.0.1", port))
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = b""

    def byte(self):
        if not self.buffer:
            self.buffer = self.connection.recv(65536)
            if not self.buffer:
                raise SystemExit("the server left")
        first, self.buffer = self.buffer[:1], self.buffer[1:]
        return first

    def send(self, text):
        data = text.encode()
        self.connection.sendall(b"$%s#%02x" % (data, sum(data) % 256))
        while (answer := self.byte()) != b"+":
            if answer == b"-":
                raise SystemExit(f"{text}: bad checksum")

    def ask(self, text):
        self.send(text)
        while self.byte() != b"$":
            pass
        answer = b""
        while (next := self.byte()) != b"#":
            answer += next
        checksum = int(self.byte() + self.byte(), 16)
        if checksum != sum(answer) % 256:
            raise SystemExit(f"{text}: the answer's checksum is wrong")
        self.connection.sendall(b"+")
        return answer.decode("latin-1")


def main():
    remote = Remote(int(sys.argv[1]))
    print("features", len(remote.ask("qSupported").split(";")))
    print("stopped", remote.ask("?")[:3])
    registers = {len(remote.ask("g")) for _ in range(200)}
    print("registers", sorted(registers))
    # The header of the debugged program's image begins with MZ.
    stop = remote.ask("qXfer:features:read:target.xml:0,fff")
    print("description", stop[:1], "target" in stop)
    remote.send("k")
    print("killed")


main()
