//! Finding messages by their words.

use undertone::{Client, Error, Message};

use crate::world::{World, has_texts};

fn texts(found: &[Message]) -> Vec<&str> {
    found.iter().map(Message::text).collect()
}

async fn found(client: &Client, words: &str) -> Vec<String> {
    let found = client.search(words, 10).await.unwrap();
    texts(&found).into_iter().map(str::to_owned).collect()
}

#[tokio::test]
async fn messages_are_found_by_the_beginnings_of_their_words_the_newest_first() {
    let world = World::new();
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let (one, two) = (world.group(&[&alice, &bob]).await, world.group(&[&alice, &bob]).await);
    one[0].send("Fresh snow, 20cm!").await.unwrap();
    has_texts(&one[1], &["Fresh snow, 20cm!"]).await;
    one[1].send("Neuschnee? Scho\u{308}n!").await.unwrap();
    has_texts(&one[0], &["Fresh snow, 20cm!", "Neuschnee? Scho\u{308}n!"]).await;
    two[0].send("snow again").await.unwrap();
    has_texts(&two[1], &["snow again"]).await;
    has_texts(&two[0], &["snow again"]).await;

    for client in [&alice, &bob] {
        assert_eq!(found(client, "snow").await, ["snow again", "Fresh snow, 20cm!"]);
        for words in ["FRESH", "fresh 20cm", "20", "fre sno", "snow, 20"] {
            assert_eq!(found(client, words).await, ["Fresh snow, 20cm!"], "{words}");
        }
        for words in ["schon", "SCHÖN", "schö", "neu scho"] {
            assert_eq!(found(client, words).await, ["Neuschnee? Scho\u{308}n!"], "{words}");
        }
        for words in ["schnee", "snow NOT again", "text:snow", "snow* OR neu", "\"snow again fresh"] {
            assert_eq!(found(client, words).await, Vec::<String>::new(), "{words}");
        }
    }
    assert_eq!(texts(&one[0].search("snow", 10).await.unwrap()), ["Fresh snow, 20cm!"]);
    assert_eq!(texts(&bob.search("snow", 1).await.unwrap()), ["snow again"]);
    for not_words in ["", "?!", &"snow ".repeat(300)] {
        assert!(matches!(alice.search(not_words, 10).await, Err(Error::Invalid(_))));
    }
}
