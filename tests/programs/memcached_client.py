"""Speaks memcached's text protocol over a few connections: memcached_client.py PORT"""

import hashlib
import random
import socket
import sys


class Client:
    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.file = self.socket.makefile("rb")

    def set(self, key, value):
        self.socket.sendall(b"set %s 7 0 %d\r\n%s\r\n" % (key, len(value), value))
        return self.file.readline().strip()

    def get(self, *keys):
        self.socket.sendall(b"get " + b" ".join(keys) + b"\r\n")
        values = {}
        while (line := self.file.readline().split()) and line[0] == b"VALUE":
            values[line[1]] = self.file.read(int(line[3]))
            self.file.readline()
        return values

    def line(self, text):
        self.socket.sendall(text + b"\r\n")
        return self.file.readline().strip().decode()


def main():
    port, source = int(sys.argv[1]), random.Random(5)
    clients = [Client(port) for _ in range(4)]
    values = {b"key%d" % i: source.randbytes(source.choice([1, 100, 5000, 60_000, 900_000])) for i in range(60)}
    answers = [clients[i % 4].set(key, value) for i, (key, value) in enumerate(values.items())]
    print("stored", answers.count(b"STORED"))
    for number, client in enumerate(clients):
        seen = client.get(*values)
        digest = hashlib.sha256(b"".join(seen[key] for key in values)).hexdigest()
        print(number, len(seen), digest, seen == values)
    client = clients[0]
    for text in [b"incr none 1", b"set n 0 0 1\r\n5", b"incr n 10", b"decr n 3", b"get", b"nonsense", b"delete n",
                 b"get n", b"add key1 0 0 1\r\nx", b"verbosity 0", b"touch key1 0"]:
        print(text.splitlines()[0].decode(), "->", client.line(text))
    for i in range(500):  # pipelined: all questions first
        client.socket.sendall(b"get key0\r\n" if i % 2 else b"get nothing\r\n")
    ends = 0
    while ends < 500:
        ends += client.file.readline() == b"END\r\n"
    print("500 pipelined answers")
    print("after quit:", clients[1].line(b"quit") or "the end")


main()
