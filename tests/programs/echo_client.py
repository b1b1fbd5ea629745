"""Talks to an echo server over several connections: echo_client.py threads|asyncio PORT CONNECTIONS MESSAGES

Every connection sends messages of random sizes and checks that they come back; one line for each says what it saw."""

import asyncio
import hashlib
import random
import socket
import sys
import threading


def messages(number, count):
    source = random.Random(number)
    for i in range(count):
        size = 200_000 if i == count // 2 else source.randint(1, 8000)
        yield source.randbytes(size)


def by_thread(port, number, count, lines):
    seen = hashlib.sha256()
    with socket.create_connection(("127.0.0.1", port)) as connection:
        for message in messages(number, count):
            connection.sendall(message)
            back = b""
            while len(back) < len(message):
                data = connection.recv(65536)
                if not data:
                    raise SystemExit("the server left")
                back += data
            seen.update(back)
        connection.shutdown(socket.SHUT_WR)
        rest = connection.recv(100)
    lines[number] = f"{number}: {seen.hexdigest()} then {rest!r}"


async def by_task(port, number, count, lines):
    seen = hashlib.sha256()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for message in messages(number, count):
        writer.write(message)
        await writer.drain()
        seen.update(await reader.readexactly(len(message)))
    writer.write_eof()
    rest = await reader.read(100)
    writer.close()
    lines[number] = f"{number}: {seen.hexdigest()} then {rest!r}"


def main():
    kind, port, connections, count = sys.argv[1], *map(int, sys.argv[2:5])
    lines = [""] * connections
    if kind == "asyncio":

        async def all_of_them():
            await asyncio.gather(*(by_task(port, n, count, lines) for n in range(connections)))

        asyncio.run(all_of_them())
    else:
        threads = [threading.Thread(target=by_thread, args=(port, n, count, lines)) for n in range(connections)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for number in range(connections):
        expected = hashlib.sha256(b"".join(messages(number, count))).hexdigest()
        print(lines[number], "right" if expected in lines[number] else "WRONG")


main()
