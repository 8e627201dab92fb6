from support import run
def test_x(client):
    assert run(client, "print(1)").text == "1\n"
